"""What the recipes of `deploy/` name is there: options, commands, paths, metrics, times that fit each other. That they work
with the programs they are for, the scripts beside them show."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml  # type: ignore[import-untyped]

from lmlite.app.routes import ROUTES
from lmlite.app.scrape import gateway_families
from lmlite.app.state import State
from lmlite.cli import build_parser
from lmlite.cli.serve import CLOSING_S, given_options
from lmlite.config import Config, gather, options
from lmlite.wire.router import Router

DEPLOY = Path(__file__).parent.parent / "deploy"
PAGES = sorted(DEPLOY.rglob("*.md"))
PUBLIC = ""
NOWHERE = {"LMLITE_HOME": "/nonexistent"}


def documents(path: Path) -> list[Any]:
    return [found for found in yaml.safe_load_all(path.read_text(encoding="utf-8")) if found is not None]


def manifest(name: str, kind: str) -> Any:
    return next(found for found in documents(DEPLOY / "kubernetes" / name) if found["kind"] == kind)


def pods() -> Iterator[Any]:
    """The templates of all that runs."""
    for path in sorted((DEPLOY / "kubernetes").rglob("*.yaml")):
        for found in documents(path):
            if isinstance(found, dict) and "template" in (found.get("spec") or {}):
                yield found["spec"]["template"]["spec"]


def arguments_of(words: list[str]) -> argparse.Namespace:
    return build_parser().parse_args(words)  # exits where a word is none of the command's


def served(words: list[str]) -> Config:
    """As a pod would have it, whose name is put in by the cluster."""
    return gather(given_options(arguments_of([word.replace("$(POD_NAME)", "lmlite-0") for word in words])), NOWHERE)


def is_there(method: str, path: str) -> bool:
    return any(route.method == method and path in (route.pattern, route.pattern.partition("{")[0]) for route in ROUTES)


# ---- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DEPLOY)))
def test_every_command_line_of_a_page_is_taken(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"`lmlite ([^`\n]+)`", text) + re.findall(r"^ +lmlite (.+)$", text, re.MULTILINE)
    for line in lines:
        words = shlex.split(line.partition(" >")[0])
        if words not in (["serve"], ["token", "import"]):  # named, and not written out
            arguments_of(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DEPLOY)))
def test_every_file_that_a_page_leads_to_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^):]+)\)", text):
        assert (page.parent / target).exists(), target
    for script in re.findall(r"`(try_\w+\.py)`", text):
        assert (DEPLOY / script).exists(), script


def test_every_flag_that_a_page_names_is_an_option() -> None:
    flags = {option.flag for option in options()}
    others = {"--from-file", "--from-literal", "--config", "--as", "--set"}
    for page in PAGES:
        for flag in re.findall(r"`(--[a-z][a-z-]+)", page.read_text(encoding="utf-8")):
            assert flag in flags | others or flag in ("--max-requests", "--tokens-per-minute"), f"{page.name}: {flag}"


# ---- HAProxy and nginx -----------------------------------------------------------------------------------------------


def test_the_paths_of_the_proxies_are_there() -> None:
    for name in ("haproxy.cfg", "kubernetes/haproxy/haproxy.cfg"):
        text = (DEPLOY / name).read_text(encoding="utf-8")
        (kept,) = re.findall(r"acl kept path_beg (.+)", text)
        assert all(is_there("POST", path) for path in kept.split())
        assert is_there("GET", re.findall(r"httpchk GET (\S+)", text)[0])


def test_the_clusters_haproxy_sends_as_the_recipe_does_to_as_many_nodes_as_there_may_be() -> None:
    front = r"frontend lmlite\n.*?\n\n(?=backend)"
    plain, cluster = (
        (DEPLOY / name).read_text(encoding="utf-8") for name in ("haproxy.cfg", "kubernetes/haproxy/haproxy.cfg")
    )
    assert re.findall(front, plain, re.DOTALL) == re.findall(front, cluster, re.DOTALL) != []
    nodes = manifest("node/nodes.yaml", "StatefulSet")
    headless = documents(DEPLOY / "kubernetes" / "node" / "services.yaml")[1]
    scaler = manifest("scaling/scaler.yaml", "HorizontalPodAutoscaler")
    name, service, port = nodes["metadata"]["name"], headless["metadata"]["name"], headless["spec"]["ports"][0]["port"]
    namespace = documents(DEPLOY / "kubernetes" / "kustomization.yaml")[0]["namespace"]
    assert nodes["spec"]["serviceName"] == service and headless["spec"]["publishNotReadyAddresses"]
    assert re.findall(r"^    server \S+ (\S+)", cluster, re.MULTILINE) == [
        f"{name}-{i}.{service}.{namespace}.svc.cluster.local:{port}" for i in range(scaler["spec"]["maxReplicas"])
    ]


# ---- Kubernetes ------------------------------------------------------------------------------------------------------


def node() -> Any:
    return manifest("node/nodes.yaml", "StatefulSet")["spec"]["template"]["spec"]


def test_the_server_takes_what_containers_are_told() -> None:
    told = [
        container["args"]
        for pod in pods()
        for container in (*pod.get("initContainers", ()), *pod["containers"])
        if container["image"].startswith("lmlite")
    ]
    assert [words[0] for words in told] == ["get", "token", "serve"]
    for words in told:
        arguments_of(words)
    config = served(told[2])
    assert config.auth and not config.loopback
    assert [container["ports"][0]["containerPort"] for container in node()["containers"]] == [config.port]


def test_probes_ask_paths_that_need_no_token() -> None:
    (container,) = node()["containers"]
    for probe, path in (("livenessProbe", "/health"), ("readinessProbe", "/ready")):
        asked = container[probe]["httpGet"]
        match = Router(ROUTES).match("GET", asked["path"], asked["path"])
        assert (asked["path"], asked["port"], match.route.right) == (path, container["ports"][0]["name"], PUBLIC)


def test_a_pod_that_ends_has_the_time_that_its_server_takes() -> None:
    pod = node()
    (container,) = pod["containers"]
    config, probe = served(container["args"]), container["readinessProbe"]
    assert pod["terminationGracePeriodSeconds"] >= config.drain_delay + config.drain + CLOSING_S
    assert config.drain_delay > 2 * probe["periodSeconds"] * probe["failureThreshold"], "all know before it takes no more"


def test_models_lie_where_the_server_looks_for_them() -> None:
    image = (DEPLOY.parent / "Containerfile").read_text(encoding="utf-8")
    (home,) = re.findall(r"LMLITE_HOME=(\S+)", image)
    (user,) = re.findall(r"^USER (\d+)", image, re.MULTILINE)
    for pod in (node(), manifest("download.yaml", "Job")["spec"]["template"]["spec"]):
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts["models"] == f"{home}/models"
        assert pod["securityContext"]["runAsUser"] == int(user)


def test_nodes_are_as_many_as_their_own_metrics_and_places_say() -> None:
    models = SimpleNamespace(waiting=dict)
    told = {family.name for family in gateway_families(cast(State, SimpleNamespace(models=models)), [])}
    (rule,) = documents(DEPLOY / "kubernetes" / "scaling" / "prometheus-adapter.yaml")[0]["rules"]["custom"]
    pattern = re.findall(r'__name__=~"([^"]+)"', rule["metricsQuery"])[0]
    assert {name for name in told if re.fullmatch(pattern, name)} == told
    assert re.findall(r'__name__="([^"]+)"', rule["seriesQuery"])[0] in told
    metric = manifest("scaling/scaler.yaml", "HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"]
    assert metric["metric"]["name"] == rule["name"]["as"]
    assert int(metric["target"]["averageValue"]) == served(node()["containers"][0]["args"]).parallel
    (scrape,) = manifest("scaling/monitor.yaml", "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert is_there("GET", scrape["path"])


# ---- Ray Serve and LiteLLM -------------------------------------------------------------------------------------------


def test_what_rays_application_is_told_it_knows() -> None:
    source = (DEPLOY / "ray_serve.py").read_text(encoding="utf-8")
    (application,) = documents(DEPLOY / "ray_serve.yaml")[0]["applications"]
    module, name = application["import_path"].split(":")
    assert (DEPLOY / f"{module}.py").exists() and f"\ndef {name}(" in source
    known = set(re.findall(r'arguments\.get\("(\w+)"', source))
    assert set(application["args"]) <= known
    commented = re.findall(r"# falcon-7b: (\{.*\})", (DEPLOY / "ray_serve.yaml").read_text(encoding="utf-8"))
    ours = set(re.findall(r'options\.pop\("(\w+)"', source))
    for told in (*application["args"]["models"].values(), *map(yaml.safe_load, commented)):
        Config.of(**{name: value for name, value in told.items() if name not in ours})


def test_the_paths_that_rays_gateway_knows_are_there() -> None:
    source = (DEPLOY / "ray_serve.py").read_text(encoding="utf-8")
    (listed,), (own,) = re.findall(r"LISTED = frozenset\((.+)\)", source), re.findall(r"OWN_HISTORY = (\(.+\))", source)
    assert all(is_there("GET", path) for path in re.findall(r'"(/[^"]+)"', listed))
    assert all(is_there("POST", path) for path in re.findall(r'"(/[^"]+)"', own))


def test_litellm_asks_nodes_where_they_listen() -> None:
    (recipe,) = documents(DEPLOY / "litellm.yaml")
    ids = [model["model_info"]["id"] for model in recipe["model_list"]]
    assert len(set(ids)) == len(ids)
    for model in recipe["model_list"]:
        assert model["litellm_params"]["model"] == f"openai/{model['model_name']}"
        assert model["litellm_params"]["api_base"].endswith("/v1")

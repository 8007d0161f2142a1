"""Shows that the manifests of kubernetes/ are what Kubernetes takes, and that a node runs with what its container is told.

    python deploy/try_kubernetes.py

Every combination of components is rendered by `kubectl kustomize` and validated, strictly, for all versions of Kubernetes from
1.30 on that the package kubernetes-validate knows. Then the containers' own arguments are run on this machine: the tokens of
the secret are taken in, probes are asked as a kubelet asks them, and a stream goes on while the pod is told to end. Prints one
JSON object; exit code 1 if something is not so.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from conversations import ROOT, free_port, running, until_ready

MANIFESTS = ROOT / "deploy" / "kubernetes"
COMPONENTS = ("haproxy", "scaling", "gpu")
OLDEST = (1, 30)
OF_OPERATORS = {"PodMonitor"}
"""Kinds that are not Kubernetes' own."""


def rendered(components: tuple[str, ...], folder: Path) -> list[Any]:
    """What is applied with these."""
    top = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text(encoding="utf-8"))
    there = os.path.relpath(MANIFESTS, folder)
    (folder / "tokens.json").write_text((MANIFESTS / "tokens.json").read_text(encoding="utf-8"))
    top["resources"] = [f"{there}/{name}" for name in top["resources"]]
    top["components"] = [f"{there}/{name}" for name in components]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(top))
    text = subprocess.run(["kubectl", "kustomize", str(folder)], check=True, capture_output=True, text=True).stdout
    return [found for found in yaml.safe_load_all(text) if found]


def validate(found: Any) -> int:
    """For how many versions it is right. Raises where it is wrong."""
    versions = [one for one in kubernetes_validate.utils.all_versions() if tuple(map(int, one.split(".")[:2])) >= OLDEST]
    for version in versions:
        kubernetes_validate.validate(found, version, strict=True)
    return len(versions)


# ---- a pod -----------------------------------------------------------------------------------------------------------


def asked(port: int, path: str, body: dict[str, Any] | None = None, host: str = "", token: str = "") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json", "Host": host or f"127.0.0.1:{port}"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def lmlite(*words: str, home: Path) -> str:
    environ = {**os.environ, "LMLITE_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lmlite", *words]
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout


def run_pod(pod: Any, folder: Path) -> dict[str, Any]:
    """With a token that was made elsewhere; its kubelet calls it by its address, its clients by the service's name."""
    (starter,), (container,) = pod["initContainers"], pod["containers"]
    home, elsewhere, file, port = folder / "data", folder / "elsewhere", folder / "tokens.json", free_port()
    token = lmlite("token", "create", "kitchen", home=elsewhere).strip()
    file.write_text(lmlite("token", "export", home=elsewhere))
    lmlite(*(str(file) if word.endswith(".json") else word for word in starter["args"]), home=home)
    written = {"$(POD_NAME)": "lmlite-0", "--port=1234": f"--port={port}", "--host=0.0.0.0": "--host=127.0.0.1"}
    words = [next((word.replace(old, new) for old, new in written.items() if old in word), word) for word in container["args"]]
    environ = {"LMLITE_HOME": str(home), "PYTHONPATH": str(ROOT), "HOME": str(folder), "LMLITE_LOG_LEVEL": "error"}
    with running([sys.executable, "-m", "lmlite", *words], **environ) as process:
        until_ready(port)
        probes = {
            name: asked(port, container[name]["httpGet"]["path"], host="10.1.2.3:1234")[0]
            for name in ("livenessProbe", "readinessProbe")
        }
        chat = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1500, "ignore_eos": True, "stream": True}
        strangers = asked(port, "/v1/models", host="lmlite.lmlite")[0]
        streams: list[tuple[int, str]] = []

        def stream() -> None:
            streams.append(asked(port, "/v1/chat/completions", chat, "lmlite.lmlite", token))

        first = threading.Thread(target=stream)
        first.start()
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        while asked(port, container["readinessProbe"]["httpGet"]["path"])[0] != 503:
            pass
        alive = asked(port, container["livenessProbe"]["httpGet"]["path"])[0]
        late = threading.Thread(target=stream)  # of a client whose proxy does not know yet
        late.start()
        code = process.wait(pod["terminationGracePeriodSeconds"])
        took_s = time.monotonic() - began
        first.join()
        late.join()
    return {
        "probes": probes,
        "who has no token": strangers,
        "alive while it takes its leave": alive,
        "streams that ended well": sum(status == 200 and "data: [DONE]" in said for status, said in streams),
        "exit code": code,
        "seconds to the end": round(took_s, 1),
    }


def main() -> int:
    validated, skipped = 0, set()
    pod = None
    with tempfile.TemporaryDirectory() as made:
        for n in range(len(COMPONENTS) + 1):
            for components in itertools.combinations(COMPONENTS, n):
                folder = Path(made) / "-".join(("render", *components))
                folder.mkdir()
                for found in [*rendered(components, folder), yaml.safe_load((MANIFESTS / "download.yaml").read_text())]:
                    if found["kind"] in OF_OPERATORS:
                        skipped.add(found["kind"])
                        continue
                    validated += validate(found)
                    if found["kind"] == "StatefulSet":
                        pod = found["spec"]["template"]["spec"]
        figures = {"validated": validated, "not Kubernetes' own": sorted(skipped), **run_pod(pod, Path(made))}
    print(json.dumps({"bench": "kubernetes", "figures": figures}, indent=1))
    kept = set(figures["probes"].values()) == {200} and figures["who has no token"] == 401
    return int(not kept or figures["streams that ended well"] != 2 or figures["exit code"] != 0)


if __name__ == "__main__":
    sys.exit(main())

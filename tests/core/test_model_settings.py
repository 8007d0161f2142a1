"""`model-settings.json`: what may stand in it, and what becomes of what may not."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from lmlite.core.disk.catalog import Catalog
from lmlite.core.disk.model_settings import parse
from lmlite.errors import ConfigError
from lmlite.settings import ModelSettings
from tests.core.gguf_files import llama
from tests.core.test_catalog import found, put


def settings_of(said: Any) -> ModelSettings:
    entry = parse(json.dumps({"falcon": said}))["falcon"]
    assert entry.problem is None
    return entry.settings


def test_every_setting_is_read_as_the_option_of_its_name_is() -> None:
    said = {
        "context_length": 16384,
        "parallel": "2",
        "kv_cells": 0,
        "kv_type": "q8_0,f16",
        "kv_offload": "off",
        "eval_batch_size": 256,
        "threads": 3,
        "gpu_layers": "max",
        "flash_attention": "on",
        "experts": 4,
        "mmap": False,
        "mlock": True,
        "chat_template": "zephyr",
        "ttl": 60,
        "sampling": {"temperature": 0, "top_k": 20, "max_tokens": -1},
        "template_kwargs": {"enable_thinking": False},
    }
    assert settings_of(said) == ModelSettings(
        context_length=16384,
        parallel=2,
        kv_cells=0,
        kv_type="q8_0,f16",
        kv_offload=False,
        eval_batch_size=256,
        threads=3,
        gpu_layers=-1,
        flash_attention=True,
        experts=4,
        mmap=False,
        mlock=True,
        chat_template="zephyr",
        ttl_s=60.0,
        sampling={"temperature": 0.0, "top_k": 20, "max_tokens": -1},
        template_kwargs={"enable_thinking": False},
    )
    assert settings_of({"gpu_layers": "off", "flash_attention": "auto"}) == ModelSettings(
        gpu_layers=0, flash_attention="auto"
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"kv_type": "q9"}, "kv_type: 'q9' is not allowed, must be one of f32, f16"),
        ({"context_length": 1.5}, "context_length: 1.5 is not allowed, must be a whole number from 0"),
        ({"context_length": True}, "context_length: True"),
        ({"ttl": -1}, "ttl: -1 is not allowed, must be seconds"),
        ({"ttl_s": 1}, "there is no setting 'ttl_s'; settings: context_length"),
        ({"port": 1}, "there is no setting 'port'"),
        ({"flash_attention": "maybe"}, "must be auto or on or off"),
        ({"sampling": 1}, "sampling: must be an object, is 1"),
        ({"sampling": {"temperature": "hot"}}, "sampling.temperature: 'hot' is not allowed, must be a number from 0 to 5"),
        ({"sampling": {"temperature": 9}}, "sampling.temperature: 9"),
        ({"sampling": {"temperature": True}}, "sampling.temperature: True"),
        ({"sampling": {"top_k": 1.5}}, "sampling.top_k: 1.5"),
        ({"sampling": {"max_tokens": 0}}, "sampling.max_tokens: 0"),
        ({"sampling": {"warmth": 1}}, "sampling: there is no 'warmth'; there are temperature"),
        ({"template_kwargs": []}, "template_kwargs: must be an object"),
        ({"template_kwargs": {"messages": []}}, "template_kwargs: 'messages' is not to be set"),
        ({"template_kwargs": {"enable_thinking": "no"}}, "template_kwargs.enable_thinking: must be true or false"),
        ({"kv_type": "\n" * 500}, "kv_type: '\\n\\n"),
        (7, "must be an object, is 7"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(said: Any, told: str) -> None:
    problem = parse(json.dumps({"falcon": said}))["falcon"].problem
    assert problem is not None and problem.startswith(f"model-settings.json: {told}") or told in str(problem)
    assert str(problem).isprintable() and len(str(problem)) < 400


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "[" * 100_000, '{"a": ' * 100_000, json.dumps({str(n): {} for n in range(5000)})]
)
def test_a_file_that_is_no_object_of_models_is_refused(content: str) -> None:
    with pytest.raises(ConfigError, match="model-settings.json"):
        parse(content)


# ---- in the catalogue ----


def write(home: Path, said: Any) -> Path:
    path = home / "model-settings.json"
    path.write_text(said if isinstance(said, str) else json.dumps(said))
    return path


@pytest.mark.parametrize("name", ["falcon-7b", "FALCON-7B", "acme/falcon-7b", "acme/Falcon-7B/Falcon-7B-Q4_K_M.gguf", "mine"])
def test_a_model_may_be_named_in_any_way(tmp_path: Path, name: str) -> None:
    put(tmp_path, "acme/Falcon-7B/Falcon-7B-Q4_K_M.gguf")
    catalog = Catalog([tmp_path], settings=write(tmp_path, {name: {"ttl": 5}}), aliases={"mine": "falcon-7b"})
    assert found(catalog, "falcon-7b").settings == ModelSettings(ttl_s=5.0)


def test_two_names_of_one_model_add_up_and_the_last_wins(tmp_path: Path) -> None:
    put(tmp_path, "acme/Falcon/Falcon-Q4_K_M.gguf")
    said = {"falcon": {"ttl": 5, "parallel": 2}, "nobody": {"ttl": 1}, "acme/falcon": {"ttl": 6}}
    catalog = Catalog([tmp_path], settings=write(tmp_path, said))
    assert found(catalog, "falcon").settings == ModelSettings(ttl_s=6.0, parallel=2)


def test_a_wrong_value_is_the_models_problem_and_of_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "falcon.gguf")
    put(tmp_path, "owl.gguf")
    said = {"falcon": {"parallel": 1, "kv_type": "q9"}, "owl": {"parallel": 2}}
    catalog = Catalog([tmp_path], settings=write(tmp_path, said))
    assert str(found(catalog, "falcon").problem).startswith("model-settings.json: kv_type: 'q9' is not allowed")
    assert (found(catalog, "owl").problem, found(catalog, "owl").settings.parallel) == (None, 2)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    catalog.rescan()
    assert len(caplog.records) == 1


def test_what_of_the_file_does_not_count_is_noted(tmp_path: Path) -> None:
    put(tmp_path, "falcon.gguf")
    catalog = Catalog([tmp_path], settings=write(tmp_path, {"owl": {"ttl": 5}}))
    assert catalog.notes() == ("model-settings.json: there is no model owl",)
    write(tmp_path, '{"owl"')
    catalog.rescan()
    assert "model-settings.json: Expecting ':'" in catalog.notes()[-1]
    write(tmp_path, {"falcon": {"ttl": 5}})
    catalog.rescan()
    assert catalog.notes() == ()


def test_the_file_is_read_again_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "falcon.gguf")
    path = tmp_path / "model-settings.json"
    catalog = Catalog([tmp_path], settings=path)
    assert found(catalog, "falcon").settings == ModelSettings() and not asyncio.run(catalog.settings_changed())
    held = found(catalog, "falcon")
    write(tmp_path, {"falcon": {"ttl": 5}})
    assert asyncio.run(catalog.settings_changed())
    catalog.rescan()
    assert found(catalog, "falcon").settings == ModelSettings(ttl_s=5.0)
    assert catalog.latest(held) == found(catalog, "falcon")
    assert not asyncio.run(catalog.settings_changed())
    caplog.set_level(logging.ERROR)
    write(tmp_path, '{"falcon": {"ttl"')  # half written
    catalog.rescan()
    assert found(catalog, "falcon").settings == ModelSettings(ttl_s=5.0)
    assert "stay as they were" in caplog.text
    path.unlink()
    catalog.rescan()
    assert found(catalog, "falcon").settings == ModelSettings()


def test_the_users_variables_are_what_reasoning_is_by_default(tmp_path: Path) -> None:
    template = "{% if enable_thinking %}{{ reasoning_effort }}{% endif %}"
    put(tmp_path, "falcon.gguf", llama(tokenizer__chat_template=template))
    for variables, default in (
        ({}, "medium"),
        ({"enable_thinking": False, "reasoning_effort": "low"}, "off"),
        ({"reasoning_effort": "low"}, "low"),
        ({"reasoning_effort": "extreme"}, "medium"),
        ({"enable_thinking": True}, "on"),
    ):
        settings = write(tmp_path, {"falcon": {"template_kwargs": variables}})
        reasoning = found(Catalog([tmp_path], settings=settings), "falcon").reasoning
        assert reasoning is not None and reasoning.default == default, variables

"""The model lists of all families, from the same cards and instances."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from lmlite.api.lmstudio import models as lmstudio_v1
from lmlite.api.lmstudio import v0 as lmstudio_v0
from lmlite.api.openai import models as openai_models
from lmlite.card import ModelCard, Reasoning
from tests.api.golden_files import CARD, GOLDEN, INSTANCE

OWL = replace(
    CARD, id="text-embedding-owl", type="embedding", quantization="?", bits_per_weight=None, params_string=None
)
SECOND = replace(INSTANCE, id="falcon-7b:2", context_length=8192, offload_kv_cache=True, n_experts=2)

V0_FALCON = {
    "id": "falcon-7b",
    "object": "model",
    "type": "llm",
    "publisher": "acme",
    "arch": "llama",
    "compatibility_type": "gguf",
    "quantization": "Q4_K_M",
    "state": "loaded",
    "max_context_length": 32768,
}


def check(text: str, schema: str) -> Any:
    body = json.loads(text)
    jsonschema.validate(body, json.loads((GOLDEN / "schemas" / f"{schema}.json").read_text()))
    return body


def test_v0_lists_cards_then_instances_of_other_names_with_the_published_keys_alone_where_asked() -> None:
    body = check(lmstudio_v0.models([CARD, OWL], [INSTANCE, SECOND], extras=False), "v0_models")
    assert body["data"] == [
        V0_FALCON,
        {**V0_FALCON, "id": OWL.id, "type": "embeddings", "quantization": "?", "state": "not-loaded"},
        {**V0_FALCON, "id": "falcon-7b:2"},
    ]


def test_v0_model_is_one_such_object() -> None:
    assert check(lmstudio_v0.model("falcon-7b", CARD, INSTANCE, extras=False), "v0_model") == V0_FALCON
    assert json.loads(lmstudio_v0.model("falcon-7b", CARD, None, extras=False)) == {**V0_FALCON, "state": "not-loaded"}
    assert json.loads(lmstudio_v0.model("v", replace(CARD, type="vlm"), None))["type"] == "vlm"


def test_v0_models_bear_capabilities_and_the_context_they_are_loaded_with() -> None:
    seer = replace(CARD, id="seer", type="vlm", trained_for_tool_use=False)
    falcon, owl, vlm = check(lmstudio_v0.models([CARD, OWL, seer], [INSTANCE]), "v0_models")["data"]
    assert falcon == {**V0_FALCON, "loaded_context_length": 4096, "capabilities": ["tool_use"]}
    assert {"loaded_context_length", "capabilities"}.isdisjoint(owl), "an embedding model has none"
    assert vlm["capabilities"] == ["vision"] and "loaded_context_length" not in vlm
    unloaded = check(lmstudio_v0.model("falcon-7b", CARD, None), "v0_model")
    assert unloaded == {**V0_FALCON, "state": "not-loaded", "capabilities": ["tool_use"]}
    plain = replace(CARD, trained_for_tool_use=False)
    assert check(lmstudio_v0.model("falcon-7b", plain, None), "v0_model")["capabilities"] == []


def test_v1_lists_instances_under_their_model() -> None:
    owl_instance = replace(INSTANCE, id=OWL.id, card=OWL)
    falcon, owl = json.loads(lmstudio_v1.models([CARD, OWL], [INSTANCE, SECOND, owl_instance]))["models"]
    config = {
        "context_length": 4096,
        "eval_batch_size": 512,
        "parallel": 4,
        "flash_attention": True,
        "offload_kv_cache_to_gpu": False,
        "num_experts": 0,
    }
    assert falcon == {
        "type": "llm",
        "publisher": "acme",
        "key": "falcon-7b",
        "display_name": "Falcon 7B",
        "architecture": "llama",
        "quantization": {"name": "Q4_K_M", "bits_per_weight": 4},
        "size_bytes": 4368439296,
        "params_string": "7B",
        "loaded_instances": [
            {"id": "falcon-7b", "config": config},
            {
                "id": "falcon-7b:2",
                "config": {**config, "context_length": 8192, "offload_kv_cache_to_gpu": True, "num_experts": 2},
            },
        ],
        "max_context_length": 32768,
        "format": "gguf",
        "capabilities": {"vision": False, "trained_for_tool_use": True},
        "description": None,
    }
    assert owl == {
        "type": "embedding",
        "publisher": "acme",
        "key": "text-embedding-owl",
        "display_name": "Falcon 7B",
        "quantization": {"name": None, "bits_per_weight": None},
        "size_bytes": 4368439296,
        "params_string": None,
        "loaded_instances": [{"id": OWL.id, "config": {"context_length": 4096}}],
        "max_context_length": 32768,
        "format": "gguf",
    }


@pytest.mark.parametrize("models", [lmstudio_v0.models, lmstudio_v1.models])
def test_a_loaded_model_that_left_the_catalogue_is_still_listed(models: Any) -> None:
    assert json.loads(models([], [INSTANCE])) != json.loads(models([], []))
    assert "falcon-7b" in models([], [INSTANCE])


def only(card: ModelCard) -> dict[str, Any]:
    (entry,) = json.loads(lmstudio_v1.models([card], []))["models"]
    assert isinstance(entry, dict)
    return entry


def test_v1_tells_what_can_be_said_of_reasoning() -> None:
    entry = only(replace(CARD, type="vlm", reasoning=Reasoning(("off", "on"), "on")))
    assert entry["capabilities"] == {
        "vision": True,
        "trained_for_tool_use": True,
        "reasoning": {"allowed_options": ["off", "on"], "default": "on"},
    }


def test_v1_tells_the_variants_of_a_catalogue_model() -> None:
    entry = only(replace(CARD, variants=("acme/falcon@q4_k_m", "acme/falcon@q8_0"), selected_variant="acme/falcon@q8_0"))
    assert entry["variants"] == ["acme/falcon@q4_k_m", "acme/falcon@q8_0"]
    assert entry["selected_variant"] == "acme/falcon@q8_0"
    assert {"variants", "selected_variant"}.isdisjoint(only(CARD))


def test_v1_tells_why_a_model_cannot_be_loaded_and_stays_valid() -> None:
    entry = only(replace(CARD, problem="not a GGUF file", max_context_length=0))
    assert entry["description"] == "Cannot be loaded: not a GGUF file"
    assert entry["max_context_length"] > 0


def test_openai_lists_ids() -> None:
    entry = {"id": "a/größer", "object": "model", "owned_by": "organization_owner"}
    assert json.loads(openai_models.models(["a/größer"])) == {"data": [entry], "object": "list"}
    assert json.loads(openai_models.models([])) == {"data": [], "object": "list"}
    assert json.loads(openai_models.model("a/größer")) == entry

"""`model.yaml`: what a document says, what a hostile one may not do, and the models that it makes of files on disk."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import pytest

from lmlite.core.disk import model_yaml
from lmlite.core.disk.catalog import Catalog
from lmlite.core.disk.model_yaml import YamlError, parse
from lmlite.settings import ModelSettings
from tests.core.gguf_files import llama, projector
from tests.core.test_catalog import found, ids, put

CATALOGUE = """
model: acme/falcon-7b
base:
  - key: community/falcon-7b-gguf
    sources:
      - {type: huggingface, user: community, repo: Falcon-7B-GGUF}
  - key: community/falcon-7b-mlx
    sources:
      - {type: huggingface, user: community, repo: Falcon-7B-MLX}
metadataOverrides:
  domain: llm
  architectures: [falcon3]
  compatibilityTypes: [gguf, safetensors]
  paramsStrings: [7B]
  contextLengths: [2048, 65536]
  trainedForToolUse: true
  reasoning: mixed
config:
  operation:
    fields:
      - {key: llm.prediction.temperature, value: 0.3}
      - {key: llm.prediction.topKSampling, value: -1}
      - key: llm.prediction.minPSampling
        value: {checked: false, value: 0.4}
      - key: llm.prediction.topPSampling
        value: {checked: true, value: 0.9}
  load:
    fields:
      - {key: llm.load.contextLength, value: 42690}
      - {key: llm.load.llama.flashAttention, value: true}
      - {key: llm.load.llama.acceleration.offloadRatio, value: max}
      - key: llm.load.llama.kCacheQuantizationType
        value: {checked: true, value: q8_0}
customFields:
  - key: enableThinking
    type: boolean
    defaultValue: false
    effects: [{type: setJinjaVariable, variable: enable_thinking}]
"""
SETTINGS = ModelSettings(
    context_length=42690,
    kv_type="q8_0,f16",
    gpu_layers=-1,
    flash_attention=True,
    sampling={"temperature": 0.3, "top_k": 0, "min_p": 0.0, "top_p": 0.9},
    template_kwargs={"enable_thinking": False},
)
THINKING = "{% if enable_thinking %}<think>{% endif %}"


def test_a_document_of_the_catalogue_is_read_whole() -> None:
    definition = parse(CATALOGUE)
    assert definition.id == "acme/falcon-7b"
    assert definition.bases[0] == ("community/falcon-7b-gguf", "community/Falcon-7B-GGUF")
    assert definition.from_catalogue
    assert definition.settings == SETTINGS
    assert (definition.arch, definition.params_string, definition.max_context_length) == ("falcon3", "7B", 65536)
    assert (definition.trained_for_tool_use, definition.reasoning) == (True, None)
    assert definition.ignored == ()


def test_a_document_may_be_as_short_as_two_lines() -> None:
    definition = parse("model: me/mine\nbase: falcon-7b")
    assert (definition.bases, definition.from_catalogue) == ((("falcon-7b",),), False)
    assert definition.settings == ModelSettings()


def test_values_that_cannot_be_used_are_told_and_the_rest_counts() -> None:
    document = CATALOGUE.replace("0.3", "hot").replace("42690", "-1").replace("enable_thinking", "messages")
    document = document.replace("llm.prediction.topKSampling", "llm.prediction.colour")
    definition = parse(document)
    assert [why.partition(":")[0] for why in definition.ignored] == [
        "llm.prediction.temperature",
        "llm.prediction.colour",
        "llm.load.contextLength",
        "customFields",
    ]
    assert definition.settings.sampling == {"min_p": 0.0, "top_p": 0.9}
    assert (definition.settings.context_length, definition.settings.gpu_layers) == (None, -1)


@pytest.mark.parametrize(
    "odd",
    [
        "base: falcon",
        "model: 7\nbase: falcon",
        "model: ''\nbase: falcon",
        'model: "a\\nb"\nbase: falcon',
        f"model: {'x' * 300}\nbase: falcon",
        "model: me/mine",
        "model: me/mine\nbase: []",
        "model: me/mine\nbase: [7, {}, [falcon], {key: 8}]",
        "- a list",
        "just text",
        "",
        "model: [",
        "model: !!python/object/apply:os.system [exit]\nbase: falcon",
        "model: &a me/mine\nbase: *a",
        "a: &a [x, x]\nb: &b [*a, *a]\nmodel: m\nbase: *b",
        "model: me/mine\nbase: falcon\n? [a]\n: b\n? {c: d}\n: e",
        "model: 2001-99-99\nbase: falcon",
        f"model: me/mine\nbase: falcon\nx: {'9' * 5000}",
        "model: me/mine\nbase: falcon\nx: " + "[" * 30_000,
        "model: me/mine\nbase: falcon\nx: " + "[" * 40 + "]" * 40,
        "model: me/mine\nbase: falcon\nx: [" + "a," * 20_000 + "]",
        "model: me/mine\nbase: falcon\nx: " + "y" * (65 << 10),
        "model: m\x00\nbase: falcon",
        "model: me/mine\nbase: falcon\n---\nmodel: another",
    ],
    ids=range(24),
)
def test_odd_documents_are_refused_and_nothing_else_happens(odd: str) -> None:
    with pytest.raises(YamlError) as refused:
        parse(odd)
    assert refused.value.reason.isprintable() and len(refused.value.reason) < 100


@pytest.mark.parametrize(
    "section",
    [
        "metadataOverrides: 7",
        "metadataOverrides: {architectures: falcon, paramsStrings: [7], contextLengths: [-1, x, true, 1e9], reasoning: maybe}",
        "config: [1]",
        "config: {operation: 7, load: {fields: {key: x}}}",
        "config: {operation: {fields: [7, {key: 8}, {value: 1}]}}",
        "customFields: {key: x}",
        "customFields: [7, {defaultValue: [1]}, {defaultValue: 1, effects: [7, {type: setJinjaVariable}]}]",
        "customFields: [{defaultValue: true, effects: {type: setJinjaVariable, variable: x}}]",
    ],
)
def test_sections_of_another_shape_say_nothing(section: str) -> None:
    definition = parse(f"model: me/mine\nbase: falcon\n{section}")
    assert definition == parse("model: me/mine\nbase: falcon")


# ---- in the catalogue ----


def hub(tmp_path: Path, place: str, document: str) -> Path:
    path = tmp_path / "hub" / place / "model.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document)
    return path


def catalog_of(tmp_path: Path, **more: Any) -> Catalog:
    return Catalog([tmp_path / "models"], definitions=[tmp_path / "hub"], **more)


def falcons(tmp_path: Path, *quants: str) -> list[Path]:
    place = "models/community/Falcon-7B-GGUF/Falcon-7B-{}.gguf"
    values = llama(tokenizer__chat_template=THINKING)
    return [put(tmp_path, place.format(quant), values) for quant in quants]


def test_a_catalogue_model_stands_for_its_files(tmp_path: Path) -> None:
    small, large = falcons(tmp_path, "Q4_K_M", "Q8_0")
    hub(tmp_path, "acme/falcon-7b", CATALOGUE)
    catalog = catalog_of(tmp_path)
    (card,) = catalog.cards()
    assert (card.id, card.publisher, card.display_name) == ("acme/falcon-7b", "acme", "Falcon 7B")
    assert card.variants == ("acme/falcon-7b@q4_k_m", "acme/falcon-7b@q8_0")
    assert (card.selected_variant, card.paths) == ("acme/falcon-7b@q4_k_m", (small,))
    assert (card.arch, card.params_string, card.max_context_length) == ("falcon3", "7B", 65536)
    assert card.trained_for_tool_use and card.settings == SETTINGS
    assert card.reasoning is not None and card.reasoning.default == "off"
    assert catalog.default() == card == found(catalog, "Acme/Falcon-7B@Q4_K_M")
    other = found(catalog, "acme/falcon-7b@q8_0")
    assert (other.paths, other.variants, other.settings) == ((large,), card.variants, SETTINGS)
    own = found(catalog, "falcon-7b@q8_0")  # the file's own name is still one
    assert (own.id, own.paths, own.settings) == ("falcon-7b@q8_0", (large,), ModelSettings())


def test_the_users_settings_stand_over_those_of_the_catalogue(tmp_path: Path) -> None:
    falcons(tmp_path, "Q4_K_M", "Q8_0")
    hub(tmp_path, "acme/falcon-7b", CATALOGUE)
    settings = tmp_path / "model-settings.json"
    settings.write_text(
        '{"acme/falcon-7b": {"context_length": 512, "sampling": {"top_p": 1}}, "acme/falcon-7b@q8_0": {"parallel": 1}}'
    )
    catalog = catalog_of(tmp_path, settings=settings)
    ours = found(catalog, "acme/falcon-7b").settings
    assert (ours.context_length, ours.kv_type, ours.parallel) == (512, "q8_0,f16", None)
    assert ours.sampling == {**SETTINGS.sampling, "top_p": 1.0}
    assert found(catalog, "acme/falcon-7b@q8_0").settings.parallel == 1
    assert found(catalog, "acme/falcon-7b@q8_0").settings.context_length == 512


@pytest.mark.parametrize(
    "base",
    ["falcon-7b", "[{key: falcon-7b}]", "community/Falcon-7B-GGUF", "community/Falcon-7B-GGUF/Falcon-7B-Q4_K_M.gguf"],
)
def test_a_model_of_ones_own_stands_beside_its_base(tmp_path: Path, base: str) -> None:
    (path,) = falcons(tmp_path, "Q4_K_M")
    hub(tmp_path, "me/quick", f"model: me/quick-falcon\nbase: {base}")
    catalog = catalog_of(tmp_path)
    assert ids(catalog) == ["falcon-7b", "me/quick-falcon"]
    card = found(catalog, "me/quick-falcon")
    assert (card.paths, card.publisher, card.display_name) == ((path,), "me", "Quick Falcon")


def test_models_may_be_made_of_each_other(tmp_path: Path) -> None:
    falcons(tmp_path, "Q4_K_M")
    hub(tmp_path, "acme/falcon-7b", CATALOGUE)
    hub(tmp_path, "me/quick", "model: me/quick\nbase: acme/falcon-7b\nconfig: {operation: {fields: "
                              "[{key: llm.prediction.temperature, value: 0}]}}")  # fmt: skip
    card = found(catalog_of(tmp_path), "me/quick")
    assert card.settings.sampling == {**SETTINGS.sampling, "temperature": 0.0}
    assert (card.settings.context_length, card.arch) == (42690, "falcon3")


def test_models_made_of_themselves_or_of_nothing_are_none(tmp_path: Path) -> None:
    falcons(tmp_path, "Q4_K_M")
    hub(tmp_path, "me/a", "model: me/a\nbase: me/b")
    hub(tmp_path, "me/b", "model: me/b\nbase: me/a")
    hub(tmp_path, "me/c", "model: me/c\nbase: eagle")
    assert ids(catalog_of(tmp_path)) == ["falcon-7b"]


def test_a_document_among_the_models_counts_too(tmp_path: Path) -> None:
    falcons(tmp_path, "Q4_K_M")
    path = tmp_path / "models/me/quick/model.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("model: me/quick\nbase: falcon-7b")
    assert ids(catalog_of(tmp_path)) == ["falcon-7b", "me/quick"]


def test_an_id_that_a_file_has_is_not_taken_from_it(tmp_path: Path) -> None:
    (path,) = falcons(tmp_path, "Q4_K_M")
    hub(tmp_path, "x/y", "model: falcon-7b\nbase: falcon-7b\nmetadataOverrides: {architectures: [mine]}")
    catalog = catalog_of(tmp_path)
    assert {card.id: card.arch for card in catalog.cards()} == {"falcon-7b": "llama", "falcon-7b:2": "mine"}
    assert found(catalog, "falcon-7b").arch == "mine"


def test_vision_is_for_the_files_to_have(tmp_path: Path) -> None:
    falcons(tmp_path, "Q4_K_M")
    hub(tmp_path, "me/see", "model: me/see\nbase: falcon-7b\nmetadataOverrides: {vision: true, reasoning: false}")
    assert found(catalog_of(tmp_path), "me/see").type == "llm"
    assert found(catalog_of(tmp_path), "me/see").reasoning is None
    put(tmp_path, "models/community/Falcon-7B-GGUF/mmproj-F16.gguf", projector())
    assert found(catalog_of(tmp_path), "me/see").type == "vlm"


def test_changes_are_seen_and_nothing_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    falcons(tmp_path, "Q4_K_M")
    path = hub(tmp_path, "me/quick", "model: me/quick\nbase: falcon-7b")
    read: list[str] = []

    def counted(text: str) -> model_yaml.Definition:
        read.append(text)
        return parse(text)

    monkeypatch.setattr(model_yaml, "parse", counted)
    catalog = catalog_of(tmp_path)
    catalog.rescan()
    catalog.rescan()
    assert len(read) == 1
    path.write_text("model: me/other\nbase: falcon-7b")
    catalog.rescan()
    assert ids(catalog) == ["falcon-7b", "me/other"]
    path.unlink()
    catalog.rescan()
    assert ids(catalog) == ["falcon-7b"]


def test_a_document_that_cannot_be_used_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    falcons(tmp_path, "Q4_K_M")
    hub(tmp_path, "me/bad", "model: [")
    (tmp_path / "hub/me/dir/model.yaml").mkdir(parents=True)
    (tmp_path / "hub/me/latin").mkdir()
    (tmp_path / "hub/me/latin/model.yaml").write_bytes(b"model: \xff")
    catalog = catalog_of(tmp_path)
    assert ids(catalog) == ["falcon-7b"]
    catalog.rescan()
    assert len(caplog.records) == 2
    bad, latin = (f"{tmp_path / 'hub/me' / name / 'model.yaml'} is ignored: " for name in ("bad", "latin"))
    assert catalog.notes() == (f"{bad}not valid YAML (line 2)", f"{latin}not a mapping")


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    falcons(tmp_path, "Q4_K_M")
    outside = tmp_path / "outside/quick/model.yaml"
    outside.parent.mkdir(parents=True)
    outside.write_text("model: me/quick\nbase: falcon-7b")
    for name, target in (("a", outside.parent.parent), ("b/c", outside.parent), ("d/e/model.yaml", outside)):
        link = tmp_path / "hub" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    assert ids(catalog_of(tmp_path)) == ["falcon-7b"]
    assert ids(catalog_of(tmp_path, follow_links_out=True)) == ["falcon-7b", "me/quick"]


def test_without_pyyaml_the_files_are_ignored_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(name: str, package: str | None = None) -> Any:
        raise ImportError(name)

    caplog.set_level(logging.WARNING)
    falcons(tmp_path, "Q4_K_M")
    monkeypatch.setattr(importlib, "import_module", missing)
    catalog = catalog_of(tmp_path)
    catalog.rescan()
    assert not caplog.records  # nothing to ignore
    hub(tmp_path, "me/quick", "model: me/quick\nbase: falcon-7b")
    catalog.rescan()
    catalog.rescan()
    (card,) = catalog.cards()
    why = "PyYAML is not installed (pip install 'lmlite[yaml]')"
    assert (card.id, card.note) == ("falcon-7b", f"its model.yaml is ignored: {why}")
    assert [record.message for record in caplog.records] == [f"model.yaml files are ignored: {why}"]
    assert catalog.notes() == (f"{tmp_path / 'hub/me/quick/model.yaml'} is ignored: {why}",)

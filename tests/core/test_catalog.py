"""Which models the catalogue finds, what it calls them, and which names find them again."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlite.card import ModelCard
from lmlite.core.disk import catalog as module
from lmlite.core.disk import gguf as reader
from lmlite.core.disk import known_headers, model_files
from lmlite.core.disk.catalog import Catalog
from lmlite.core.disk.model_files import model_folders
from lmlite.package import bundled_model, bundled_vision_model
from tests.core.gguf_files import F16, F32, Q4_K, Q8_0, Tensor, bert, gguf, llama, projector

FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "q4_k_m": 15, "q5_k_m": 17}
TENSORS = {"f32": Tensor("a", (256,), F32), "f16": Tensor("a", (256,), F16), "q8_0": Tensor("a", (256,), Q8_0)}


def put(root: Path, place: str, values: Mapping[str, Any] | None = None, tensors: Any = None) -> Path:
    """A sound model's file; its quantization is what its name says."""
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    quant = next((name for name in FILE_TYPES if name in path.name.lower()), "q4_k_m")
    content = {**(llama() if values is None else values)}
    if "general.file_type" in content:
        content["general.file_type"] = FILE_TYPES[quant]
    chosen = [TENSORS.get(quant, Tensor("a", (256,), Q4_K))] if tensors is None else tensors
    path.write_bytes(gguf(content, chosen))
    return path


def put_parts(root: Path, stem: str, count: int) -> list[Path]:
    paths = []
    for no in range(count):
        split = {"split.no": no, "split.count": count}
        values = {**llama(), **split} if no == 0 else split
        tensors = [Tensor(f"t{no}", (256,), Q4_K)]
        paths.append(put(root, f"{stem}-{no + 1:05d}-of-{count:05d}.gguf", values, tensors))
    return paths


def ids(catalog: Catalog) -> list[str]:
    return [card.id for card in catalog.cards()]


def found(catalog: Catalog, name: str) -> ModelCard:
    card = catalog.resolve(name)
    assert card is not None, name
    return card


# ---- ids ----


def test_the_repository_names_the_model(tmp_path: Path) -> None:
    path = put(tmp_path, "acme/Falcon-7B-Chat-GGUF/Falcon-7B-Chat-Q4_K_M.gguf")
    (card,) = Catalog([tmp_path]).cards()
    assert card == ModelCard(
        id="falcon-7b-chat",
        type="llm",
        publisher="acme",
        display_name="Falcon 7B Chat",
        arch="llama",
        quantization="Q4_K_M",
        bits_per_weight=4,
        size_bytes=path.stat().st_size,
        params_string="256",
        max_context_length=4096,
        paths=(path,),
        has_chat_template=True,
    )


def test_several_quantizations_of_a_repository_are_told_apart(tmp_path: Path) -> None:
    for quant in ("Q4_K_M", "Q8_0"):
        put(tmp_path, f"acme/Falcon-7B-GGUF/Falcon-7B-{quant}.gguf")
    assert ids(Catalog([tmp_path])) == ["falcon-7b@q4_k_m", "falcon-7b@q8_0"]


def test_variants_that_only_the_file_name_knows_are_told_apart(tmp_path: Path) -> None:
    for quant in ("Q4_K_M", "UD-Q4_K_M", "i1-Q4_K_M"):
        put(tmp_path, f"acme/Falcon-7B-GGUF/Falcon-7B-{quant}.gguf")
    assert ids(Catalog([tmp_path])) == ["falcon-7b@i1-q4_k_m", "falcon-7b@q4_k_m", "falcon-7b@ud-q4_k_m"]


def test_one_name_from_two_publishers_carries_both(tmp_path: Path) -> None:
    put(tmp_path, "acme/Falcon-7B-GGUF/Falcon-7B-Q4_K_M.gguf")
    put(tmp_path, "Birds/falcon-7b-gguf/falcon-7b.Q8_0.gguf")
    put(tmp_path, "Birds/Owl-GGUF/owl.gguf")
    catalog = Catalog([tmp_path])
    assert ids(catalog) == ["acme/falcon-7b", "birds/falcon-7b", "owl"]
    assert catalog.resolve("falcon-7b") is None


def test_what_still_has_one_name_is_numbered(tmp_path: Path) -> None:
    for root in ("one", "two"):
        put(tmp_path / root, "acme/Falcon-GGUF/Falcon-Q8_0.gguf")
    catalog = Catalog([tmp_path / "one", tmp_path / "two"])
    assert ids(catalog) == ["falcon", "falcon:2"]
    assert found(catalog, "falcon").paths[0].is_relative_to(tmp_path / "one")
    assert found(catalog, "falcon:2").paths[0].is_relative_to(tmp_path / "two")


def test_different_models_in_one_repository_go_by_their_files(tmp_path: Path) -> None:
    for name in ("Falcon-Q8_0", "Owl-Q8_0", "zoo"):
        put(tmp_path, f"acme/zoo-GGUF/{name}.gguf")
    catalog = Catalog([tmp_path])
    assert ids(catalog) == ["falcon", "owl", "zoo"]
    assert catalog.resolve("acme/zoo-GGUF") is None


def test_embedding_models_are_prefixed_once(tmp_path: Path) -> None:
    put(tmp_path, "acme/owl-v1-GGUF/owl-v1.f16.gguf", bert())
    put(tmp_path, "acme/text-embedding-wren-GGUF/wren.f16.gguf", bert())
    catalog = Catalog([tmp_path])
    assert ids(catalog) == ["text-embedding-owl-v1", "text-embedding-wren"]
    assert {card.type for card in catalog.cards()} == {"embedding"}


@pytest.mark.parametrize(
    ("place", "id", "publisher"),
    [
        ("Falcon-7B-Q4_K_M.gguf", "falcon-7b", "local"),
        ("Falcon.IQ4_XS.GGUF", "falcon", "local"),
        ("falcon-GGUF-bf16.gguf", "falcon", "local"),
        ("falcon-MXFP4_MOE.gguf", "falcon", "local"),
        ("q8_0.gguf", "q8_0", "local"),
        ("birds/Falcon-q8_0.gguf", "falcon", "local"),
        ("acme/Falcon-GGUF/Q8_0/Falcon-Q8_0.gguf", "falcon", "acme"),
        ("acme/-GGUF/owl.gguf", "owl", "acme"),
    ],
)
def test_places_outside_the_layout_are_tolerated(tmp_path: Path, place: str, id: str, publisher: str) -> None:
    put(tmp_path, place)
    (card,) = Catalog([tmp_path]).cards()
    assert (card.id, card.publisher, card.problem) == (id, publisher, None)


def test_what_lies_too_deep_is_not_looked_for(tmp_path: Path) -> None:
    put(tmp_path, "a/b/c/d/falcon.gguf")
    assert Catalog([tmp_path]).cards() == ()


def test_ids_do_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    places = ["acme/F-GGUF/F-Q8_0.gguf", "acme/F-GGUF/F-Q4_K_M.gguf", "birds/F/F.gguf", "F.gguf", "x/F-q8_0.gguf"]
    for place in places:
        put(tmp_path / "one", place)
    for place in reversed(places):
        put(tmp_path / "two", place)
    assert ids(Catalog([tmp_path / "one"])) == ids(Catalog([tmp_path / "two"]))


UNCATEGORIZED = "imported-models/uncategorized"


def test_the_folder_of_what_comes_from_nowhere_names_no_model(tmp_path: Path) -> None:
    put(tmp_path, f"{UNCATEGORIZED}/Falcon-7B-Q4_K_M.gguf")
    catalog = Catalog([tmp_path])
    assert ids(catalog) == ["falcon-7b"]
    put(tmp_path, f"{UNCATEGORIZED}/Owl-Q8_0.gguf")
    catalog.rescan()
    assert ids(catalog) == ids(Catalog([tmp_path])) == ["falcon-7b", "owl"]
    assert catalog.resolve("uncategorized") is None


@pytest.mark.parametrize(
    ("first", "later", "expected"),
    [
        ("acme/Falcon-GGUF/Falcon-Q8_0.gguf", "acme/Falcon-GGUF/Falcon-Q4_K_M.gguf", ["falcon", "falcon@q4_k_m"]),
        ("birds/Falcon-GGUF/Falcon-Q8_0.gguf", "acme/Falcon-GGUF/Falcon-Q8_0.gguf", ["acme/falcon", "falcon"]),
        ("acme/zoo-GGUF/owl.gguf", "acme/zoo-GGUF/falcon.gguf", ["falcon", "zoo"]),
        ("x/Falcon-Q8_0.gguf", "a/Falcon-Q8_0.gguf", ["falcon", "falcon:2"]),
    ],
)
@pytest.mark.parametrize("restarted", [False, True])
def test_no_id_changes_because_another_model_came(
    tmp_path: Path, first: str, later: str, expected: list[str], restarted: bool
) -> None:
    """The id stays with its file, and names it also where a bare name could mean either of two."""
    models, state = tmp_path / "models", tmp_path / "home"
    state.mkdir()
    path = put(models, first)
    catalog = Catalog([models], state=state)
    (id,) = ids(catalog)
    other = put(models, later)
    if restarted:
        catalog = Catalog([models], state=state)
    catalog.rescan()
    assert ids(catalog) == expected
    assert found(catalog, id).paths == (path,)
    assert [found(catalog, other_id).paths for other_id in expected if other_id != id] == [(other,)]
    path.unlink()
    catalog.rescan()
    assert ids(catalog) == [other_id for other_id in expected if other_id != id]


def test_a_model_that_comes_back_has_its_id_unless_another_has_it_now(tmp_path: Path) -> None:
    usual = put(tmp_path, "acme/Falcon-GGUF/Falcon-Q4_K_M.gguf")
    catalog = Catalog([tmp_path])
    catalog.rescan()
    path = put(tmp_path, "acme/Falcon-GGUF/Falcon-Q8_0.gguf")
    catalog.rescan()
    assert ids(catalog) == ["falcon", "falcon@q8_0"]
    content = usual.read_bytes()
    for others in ([], ["birds/Falcon-GGUF/Falcon-Q4_K_M.gguf"]):
        usual.unlink()
        for other in others:
            put(tmp_path, other)
        catalog.rescan()
        usual.write_bytes(content)
        catalog.rescan()
        assert found(catalog, "acme/Falcon-GGUF/Falcon-Q4_K_M.gguf").id == "falcon"
    path.unlink()
    usual.unlink()
    put(tmp_path, "cat/Falcon-GGUF/Falcon-Q4_K_M.gguf")
    (tmp_path / "birds/Falcon-GGUF/Falcon-Q4_K_M.gguf").unlink()
    catalog.rescan()
    assert ids(catalog) == ["falcon"]
    usual.write_bytes(content)
    catalog.rescan()
    assert ids(catalog) == ["acme/falcon", "falcon"]


def test_a_file_that_became_another_kind_of_model_is_named_anew(tmp_path: Path) -> None:
    put(tmp_path, "acme/owl-GGUF/owl-Q4_K_M.gguf")
    catalog = Catalog([tmp_path])
    assert ids(catalog) == ["owl"]
    put(tmp_path, "acme/owl-GGUF/owl-Q4_K_M.gguf", bert())
    catalog.rescan()
    assert ids(catalog) == ["text-embedding-owl"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"a": 7}', b'{"a": ""}', b"[" * 200_000, b"\xff"])
def test_damaged_ids_are_given_anew(tmp_path: Path, damage: bytes) -> None:
    for quant in ("Q4_K_M", "Q8_0"):
        put(tmp_path, f"models/acme/Falcon-GGUF/Falcon-{quant}.gguf")
    (tmp_path / "model-ids.json").write_bytes(damage)
    for _ in range(2):
        assert ids(Catalog([tmp_path / "models"], state=tmp_path)) == ["falcon@q4_k_m", "falcon@q8_0"]


@pytest.mark.parametrize("place", ["", "acme/zoo-GGUF/", f"{UNCATEGORIZED}/"])
@pytest.mark.parametrize("several", [False, True])
def test_a_files_own_name_always_finds_it(tmp_path: Path, place: str, several: bool) -> None:
    path = put(tmp_path, f"{place}Falcon-7B-Q8_0.gguf")
    if several:
        put(tmp_path, f"{place}Owl-Q8_0.gguf")
    catalog = Catalog([tmp_path])
    for name in ("Falcon-7B-Q8_0", "falcon-7b-q8_0.GGUF"):
        assert found(catalog, name).paths == (path,)


def test_the_parts_own_names_find_their_model(tmp_path: Path) -> None:
    paths = put_parts(tmp_path, "acme/zoo-GGUF/Falcon-Q4_K_M", 2)
    catalog = Catalog([tmp_path])
    for name in ("Falcon-Q4_K_M", "Falcon-Q4_K_M-00002-of-00002.gguf", "Falcon-Q4_K_M-00001-of-00002"):
        assert found(catalog, name).paths == tuple(paths)


# ---- files that belong together ----


def test_parts_of_a_split_model_are_one_model(tmp_path: Path) -> None:
    paths = put_parts(tmp_path, "acme/Falcon-GGUF/Falcon-Q4_K_M", 3)
    (card,) = Catalog([tmp_path]).cards()
    assert (card.id, card.paths, card.problem) == ("falcon", tuple(paths), None)
    assert card.size_bytes == sum(path.stat().st_size for path in paths)
    assert card.params_string == "768"


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_part_is_a_problem(tmp_path: Path, missing: int) -> None:
    put_parts(tmp_path, "acme/Falcon-GGUF/Falcon-Q4_K_M", 3)[missing].unlink()
    (card,) = Catalog([tmp_path]).cards()
    assert (card.id, card.problem) == ("falcon", "1 of 3 parts are missing")


def test_a_part_that_bears_the_number_of_another_is_named(tmp_path: Path) -> None:
    paths = put_parts(tmp_path, "acme/Falcon-GGUF/Falcon-Q4_K_M", 3)
    paths[2].write_bytes(paths[1].read_bytes())
    (card,) = Catalog([tmp_path]).cards()
    assert card.problem == "part 3 says that it is part 2"


def test_a_number_that_is_there_twice_is_named(tmp_path: Path) -> None:
    paths = put_parts(tmp_path, "acme/Falcon-GGUF/Falcon-Q4_K_M", 2)
    paths[1].unlink()
    paths[0].with_suffix(".GGUF").write_bytes(paths[0].read_bytes())
    (card,) = Catalog([tmp_path]).cards()
    assert card.problem == "part 1 is there twice"


def test_a_broken_part_is_named(tmp_path: Path) -> None:
    path = put_parts(tmp_path, "acme/Falcon-GGUF/Falcon-Q4_K_M", 3)[1]
    path.write_bytes(path.read_bytes()[:-1])
    (card,) = Catalog([tmp_path]).cards()
    assert card.problem is not None and card.problem.startswith("part 2: incomplete file")


def test_a_part_under_a_name_of_its_own_is_a_problem(tmp_path: Path) -> None:
    put_parts(tmp_path, "acme/Falcon-GGUF/Falcon", 2)[0].rename(tmp_path / "falcon.gguf")
    card = found(Catalog([tmp_path]), "falcon.gguf")
    assert card.problem == "a model of 2 parts, named as one of 1"


@pytest.mark.parametrize("numbers", ["00000-of-00003", "00004-of-00003", "00001-of-00000", "00001-of-99999"])
def test_numbers_that_are_no_parts_are_part_of_the_name(tmp_path: Path, numbers: str) -> None:
    put(tmp_path, f"falcon-{numbers}.gguf")
    assert ids(Catalog([tmp_path])) == [f"falcon-{numbers}"]


def test_a_projector_makes_its_repositorys_models_see(tmp_path: Path) -> None:
    models = [put(tmp_path, f"acme/Falcon-GGUF/Falcon-{quant}.gguf") for quant in ("Q4_K_M", "Q8_0")]
    put(tmp_path, "acme/Falcon-GGUF/mmproj-Falcon-f32.gguf", projector())
    best = put(tmp_path, "acme/Falcon-GGUF/mmproj-Falcon-f16.gguf", projector())
    put(tmp_path, "acme/Owl-GGUF/Owl.gguf")
    catalog = Catalog([tmp_path])
    assert [(card.id, card.type, card.mmproj) for card in catalog.cards()] == [
        ("falcon@q4_k_m", "vlm", best),
        ("falcon@q8_0", "vlm", best),
        ("owl", "llm", None),
    ]
    assert found(catalog, "falcon@q8_0").size_bytes == models[1].stat().st_size + best.stat().st_size


def test_a_projector_that_only_hears_makes_no_model_see(tmp_path: Path) -> None:
    put(tmp_path, "acme/Falcon-GGUF/Falcon-Q4_K_M.gguf", llama())
    hears = {"clip.has_vision_encoder": False, "clip.has_audio_encoder": True}
    ears = put(tmp_path, "acme/Falcon-GGUF/mmproj-f16.gguf", projector() | hears)
    (card,) = Catalog([tmp_path]).cards()
    assert (card.type, card.sees, card.hears, card.mmproj) == ("llm", False, True, ears)


def test_a_projector_is_known_by_its_header_too(tmp_path: Path) -> None:
    put(tmp_path, "acme/Falcon-GGUF/Falcon.gguf")
    eyes = put(tmp_path, "acme/Falcon-GGUF/eyes-f16.gguf", projector())
    (card,) = Catalog([tmp_path]).cards()
    assert card.mmproj == eyes


def test_a_broken_projector_is_not_given_to_a_model(tmp_path: Path) -> None:
    put(tmp_path, "acme/Falcon-GGUF/Falcon.gguf")
    (tmp_path / "acme/Falcon-GGUF/mmproj-f16.gguf").write_bytes(b"GGUF")
    (card,) = Catalog([tmp_path]).cards()
    assert (card.type, card.mmproj, card.problem) == ("llm", None, None)


def test_a_projector_among_loose_files_belongs_to_none(tmp_path: Path) -> None:
    put(tmp_path, "falcon.gguf")
    put(tmp_path, "mmproj-owl-f16.gguf", projector())
    assert [(card.id, card.type) for card in Catalog([tmp_path]).cards()] == [("falcon", "llm")]


def test_what_only_stands_beside_a_model_is_no_model(tmp_path: Path) -> None:
    put(tmp_path, "acme/Falcon-GGUF/falcon-lora.gguf", llama(general__type="adapter"))
    put(tmp_path, "acme/Falcon-GGUF/falcon.imatrix.gguf", {"general.type": "imatrix"})
    put(tmp_path, "acme/Falcon-GGUF/vector.gguf", {"general.architecture": "controlvector"})
    (tmp_path / "acme/Falcon-GGUF/imatrix.gguf").write_bytes(b"other")
    (tmp_path / "acme/Falcon-GGUF/README.md").write_text("# Falcon")
    put(tmp_path, ".cache/x/hidden.gguf")
    assert Catalog([tmp_path]).cards() == ()


# ---- what a card tells ----


def test_tool_use_is_read_from_the_template(tmp_path: Path) -> None:
    put(tmp_path, "falcon.gguf", llama(tokenizer__chat_template="{% if tools %}{{ tools }}{% endif %}"))
    (card,) = Catalog([tmp_path]).cards()
    assert (card.has_chat_template, card.trained_for_tool_use) == (True, True)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (llama(llama__context_length=0), "context_length 0 is out of range"),
        (llama(llama__context_length=2**32 - 1), "context_length 4294967295 is out of range"),
        (llama(llama__block_count=0), "block_count 0 is out of range"),
        (llama(llama__block_count=2**31 - 1), "block_count 2147483647 is out of range"),
        (llama(llama__context_length="x"), "no context_length is given"),
        ({"general.name": "x"}, "no architecture is named"),
    ],
)
def test_a_header_that_an_engine_would_die_of_is_a_problem(tmp_path: Path, values: dict[str, Any], problem: str) -> None:
    put(tmp_path, "falcon.gguf", values)
    (card,) = Catalog([tmp_path]).cards()
    assert card.problem == problem


def test_a_vocabulary_is_no_model_to_load(tmp_path: Path) -> None:
    put(tmp_path, "falcon.gguf", tensors=[])
    (card,) = Catalog([tmp_path]).cards()
    assert card.problem == "a vocabulary without weights"


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04" + bytes(99), gguf(llama())[:200], gguf(llama())[:-1]])
def test_a_broken_file_is_listed_beside_the_sound_ones(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, "acme/Owl-GGUF/Owl-Q8_0.gguf")
    broken = put(tmp_path, "acme/Falcon-GGUF/Falcon-Q4_K_M.gguf")
    broken.write_bytes(content)
    falcon, owl = Catalog([tmp_path]).cards()
    assert (falcon.id, falcon.quantization, falcon.size_bytes) == ("falcon", "Q4_K_M", len(content))
    assert falcon.problem
    assert owl.problem is None


# ---- names in requests ----


@pytest.mark.parametrize(
    "name",
    [
        "falcon-7b",
        "FALCON-7B",
        "acme/falcon-7b",
        "Acme/Falcon-7B-GGUF",
        "acme/falcon-7b@q4_k_m",
        "falcon-7b@Q4_K_M",
        "acme/Falcon-7B-GGUF@q4_k_m",
        "acme/Falcon-7B-GGUF/Falcon-7B-Q4_K_M.gguf",
        "acme/falcon-7b-gguf/falcon-7b-q4_k_m.gguf",
    ],
)
def test_every_spelling_of_the_contract_finds_the_model(tmp_path: Path, name: str) -> None:
    put(tmp_path, "acme/Falcon-7B-GGUF/Falcon-7B-Q4_K_M.gguf")
    put(tmp_path, "acme/Owl-GGUF/Owl.gguf")
    assert found(Catalog([tmp_path]), name).id == "falcon-7b"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "falcon",
        "falcon-7b ",
        "falcon-7b@q8_0",
        "falcon-7b@",
        "birds/falcon-7b",
        "../falcon-7b",
        "acme/../acme/falcon-7b",
        "/etc/passwd",
        "C:\\falcon-7b",
        "%66alcon-7b",
        "falcon-7b\0",
        "falcon-7b\n",
        "\ud800",
        "x" * 10_000,
        "falcon-7b" + "/" * 10_000,
    ],
)
def test_any_other_name_finds_nothing(tmp_path: Path, name: str) -> None:
    put(tmp_path, "acme/Falcon-7B-GGUF/Falcon-7B-Q4_K_M.gguf")
    assert Catalog([tmp_path]).resolve(name) is None


@given(st.text(max_size=40))
def test_no_text_finds_a_model_that_it_does_not_name(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = tmp_path_factory.getbasetemp() / "one-model"
    if not root.exists():
        put(root, "acme/Falcon-7B-GGUF/Falcon-7B-Q4_K_M.gguf")
    card = Catalog([root]).resolve(name)
    assert card is None or "falcon-7b" in name.casefold()


def test_a_bare_name_of_several_quantizations_takes_the_usual_one(tmp_path: Path) -> None:
    for quant in ("f16", "Q8_0", "Q4_K_M"):
        put(tmp_path, f"acme/Falcon-GGUF/Falcon-{quant}.gguf")
    catalog = Catalog([tmp_path])
    for name in ("falcon", "acme/falcon", "acme/Falcon-GGUF"):
        assert found(catalog, name).id == "falcon@q4_k_m"
    assert found(catalog, "acme/falcon@q8_0").id == "falcon@q8_0"


def test_a_bare_name_takes_the_nearest_that_can_be_loaded(tmp_path: Path) -> None:
    for quant in ("f16", "Q8_0", "Q4_K_M"):
        path = put(tmp_path, f"acme/Falcon-GGUF/Falcon-{quant}.gguf")
    path.write_bytes(b"")
    assert found(Catalog([tmp_path]), "falcon").id == "falcon@q8_0"


def test_an_embedding_model_is_found_without_its_prefix(tmp_path: Path) -> None:
    put(tmp_path, "acme/owl-v1-GGUF/owl-v1.f16.gguf", bert())
    assert found(Catalog([tmp_path]), "acme/owl-v1").id == "text-embedding-owl-v1"


def test_aliases_lead_to_any_name_that_is_known(tmp_path: Path) -> None:
    put(tmp_path, "acme/Falcon-GGUF/Falcon.gguf")
    put(tmp_path, "acme/Owl-GGUF/Owl.gguf")
    catalog = Catalog([tmp_path], aliases={"GPT-4o": "acme/falcon", "falcon": "owl", "gone": "none", "loop": "loop"})
    assert found(catalog, "gpt-4O").id == "falcon"
    assert found(catalog, "falcon").id == "owl"
    assert catalog.resolve("gone") is None
    assert catalog.resolve("loop") is None


def test_an_alias_with_a_star_is_for_all_names_of_its_form(tmp_path: Path) -> None:
    for name in ("Falcon", "Owl", "Wren"):
        put(tmp_path, f"acme/{name}-GGUF/{name}.gguf")
    aliases = {"*": "wren", "Claude-*": "falcon", "claude-haiku-*": "acme/owl", "claude-own": "none", "claude-[a]*b.": "wren"}
    catalog = Catalog([tmp_path], aliases={**aliases, "gpt-*": "nobody"})

    def matched(name: str) -> str | None:
        card = catalog.matched(name)
        return None if card is None else card.id

    assert matched("claude-opus-9") == matched("CLAUDE-") == "falcon"
    assert matched("claude-haiku-4-5@x") == "owl"
    assert matched("claude-[a]xb.") == "wren" and matched("claude-axb.") == "falcon"
    assert matched("other") == "wren"
    assert matched("claude-own") is matched("gpt-5") is None
    assert catalog.resolve("claude-opus-9") is None
    assert found(catalog, "falcon").aliases == ("Claude-*",)
    told = "the alias {} stands for {}, and there is no such model"
    assert catalog.notes() == (told.format("claude-own", "none"), told.format("gpt-*", "nobody"))


def test_a_star_leads_no_settings_to_a_model_that_they_do_not_name(tmp_path: Path) -> None:
    put(tmp_path, "acme/Falcon-GGUF/Falcon.gguf")
    settings = tmp_path / "model-settings.json"
    settings.write_text('{"gone": {"ttl": 5}}')
    catalog = Catalog([tmp_path], settings=settings, aliases={"*": "falcon"})
    assert found(catalog, "falcon").settings.ttl_s is None
    assert catalog.notes() == ("model-settings.json: there is no model gone",)


def test_every_listed_id_finds_its_own_card(tmp_path: Path) -> None:
    for place in ("acme/F-GGUF/F-Q8_0.gguf", "acme/F-GGUF/F-Q4_K_M.gguf", "birds/F/F.gguf", "F.gguf", "f@q8_0.gguf"):
        put(tmp_path, place)
    catalog = Catalog([tmp_path])
    assert len(set(ids(catalog))) == 5
    for card in catalog.cards():
        assert catalog.resolve(card.id) == card


def test_the_default_is_the_only_llm_that_can_be_loaded(tmp_path: Path) -> None:
    catalog = Catalog([tmp_path])
    assert catalog.default() is None
    put(tmp_path, "acme/Falcon-GGUF/Falcon.gguf")
    put(tmp_path, "acme/owl-GGUF/owl.f16.gguf", bert())
    (tmp_path / "broken.gguf").write_bytes(b"")
    catalog.rescan()
    assert catalog.default() == found(catalog, "falcon")
    put(tmp_path, "acme/Wren-GGUF/Wren.gguf")
    catalog.rescan()
    assert catalog.default() is None


# ---- files of the command line ----


def test_a_named_file_goes_by_its_own_name(tmp_path: Path) -> None:
    path = put(tmp_path, "Falcon-7B-Q8_0.gguf")
    put(tmp_path, "Owl.gguf")
    catalog = Catalog([], [path])
    (card,) = catalog.cards()
    assert (card.id, card.publisher, card.paths) == ("falcon-7b", "local", (path,))
    assert catalog.named() == (card,)
    assert found(catalog, str(path)) == found(catalog, "Falcon-7B-Q8_0.gguf") == card


def test_a_named_file_in_the_layout_has_a_publisher(tmp_path: Path) -> None:
    path = put(tmp_path, "acme/Falcon-7B-GGUF/Falcon-7B-Q8_0.gguf")
    (card,) = Catalog([], [path]).cards()
    assert (card.id, card.publisher) == ("falcon-7b", "acme")


def test_a_named_part_brings_the_others(tmp_path: Path) -> None:
    paths = put_parts(tmp_path, "Falcon-Q4_K_M", 3)
    put(tmp_path, "Owl.gguf")
    (card,) = Catalog([], [paths[1]]).cards()
    assert (card.id, card.paths, card.problem) == ("falcon", tuple(paths), None)


def test_a_named_model_takes_the_projector_beside_it_only_if_it_is_alone(tmp_path: Path) -> None:
    path = put(tmp_path, "Falcon-Q8_0.gguf")
    eyes = put(tmp_path, "mmproj-f16.gguf", projector())
    assert [card.mmproj for card in Catalog([], [path]).cards()] == [eyes]
    put(tmp_path, "Owl.gguf")
    assert [card.mmproj for card in Catalog([], [path]).cards()] == [None]
    assert [card.mmproj for card in Catalog([], [path, eyes]).cards()] == [eyes]


def test_a_file_named_and_found_is_listed_once(tmp_path: Path) -> None:
    path = put(tmp_path, "acme/Falcon-GGUF/Falcon.gguf")
    catalog = Catalog([tmp_path], [path, path])
    assert [(card.id, card.publisher) for card in catalog.cards()] == [("falcon", "acme")]
    assert catalog.named() == catalog.cards()


def test_a_named_file_that_is_not_there_is_listed_with_its_problem(tmp_path: Path) -> None:
    (card,) = Catalog([], [tmp_path / "falcon.gguf"]).cards()
    assert (card.id, card.problem) == ("falcon", os.strerror(2).lower())


def test_a_named_file_needs_no_ending(tmp_path: Path) -> None:
    path = put(tmp_path, "sha256-abc")
    (card,) = Catalog([], [path]).cards()
    assert (card.id, card.problem) == ("sha256-abc", None)


def test_a_named_folder_is_no_model(tmp_path: Path) -> None:
    (card,) = Catalog([], [tmp_path]).cards()
    assert card.problem == "not a regular file"


# ---- hostile places ----

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")


@posix
def test_loops_and_links_out_do_not_break_a_scan(tmp_path: Path) -> None:
    root, outside = tmp_path / "models", tmp_path / "outside"
    put(root, "acme/Falcon-GGUF/Falcon.gguf")
    secret = put(outside, "x/y/secret.gguf")
    (root / "acme/self").symlink_to(root)
    (root / "acme/Falcon-GGUF/loop.gguf").symlink_to("loop.gguf")
    (root / "acme/Falcon-GGUF/gone.gguf").symlink_to("nowhere.gguf")
    (root / "acme/Falcon-GGUF/Falcon-copy.gguf").symlink_to("Falcon.gguf")
    (root / "out").symlink_to(outside)
    (root / "link.gguf").symlink_to(secret)
    catalog = Catalog([root])
    problems = {card.id: card.problem for card in catalog.cards()}
    assert problems["link"] == "a link out of the models folder"
    assert problems["falcon"] is None
    assert problems["loop"] and problems["gone"]
    assert set(problems) == {"falcon", "gone", "link", "loop"}
    assert found(catalog, "acme/Falcon-GGUF/Falcon-copy.gguf").id == "falcon"


@posix
def test_what_is_left_out_is_told_with_its_reason(tmp_path: Path) -> None:
    root, outside = tmp_path / "models", tmp_path / "outside"
    put(root, "acme/Falcon-GGUF/Falcon.gguf")
    put(outside, "Owl/Owl.gguf")
    (root / "acme/Falcon-GGUF/Copy.gguf").symlink_to("Falcon.gguf")
    (root / "birds").symlink_to("acme")
    (root / "cats").symlink_to(outside)
    (root / "dogs").symlink_to("nowhere")
    (root / "acme/README").write_text("no model")
    (root / "gone.gguf").symlink_to("nowhere.gguf")
    (root / "empty.gguf").write_bytes(b"")
    catalog = Catalog([root])
    assert {card.id: card.problem for card in catalog.cards()} == {
        "falcon": None,
        "gone": "a link to what is not there",
        "empty": "an empty file",
    }
    assert sorted(catalog.notes()) == [
        f"{root}/acme/Falcon-GGUF/Copy.gguf is left out: a link to acme/Falcon-GGUF/Falcon.gguf, which is listed",
        f"{root}/birds is left out: a link to a folder whose models are listed already",
        f"{root}/cats is left out: a link out of the models folder; --models-dir can name the folder that it leads to",
        f"{root}/dogs is left out: a link to what is not there",
    ]
    for name in ("Copy", "copy.gguf", "acme/Falcon-GGUF/Copy.gguf"):
        assert found(catalog, name).id == "falcon"
    (root / "cats").unlink()
    catalog.rescan()
    assert len(catalog.notes()) == 3


def test_a_note_is_one_line_and_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/a\x1b[31m\n").symlink_to("nowhere")
    (note,) = Catalog([tmp_path / "models"], aliases={"b": "c\n"}).notes()[:1]
    assert note.isprintable() and "a\\x1b[31m\\n is left out" in note


def test_aliases_are_told_and_those_of_nothing_are_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "acme/Falcon-GGUF/Falcon.gguf")
    catalog = Catalog([tmp_path], aliases={"GPT-4o": "falcon", "quick": "acme/falcon", "gone": "wren"})
    (card,) = catalog.cards()
    told = "the alias gone stands for wren, and there is no such model"
    assert (card.aliases, catalog.notes()) == (("GPT-4o", "quick"), (told,))
    put(tmp_path, "acme/Owl-GGUF/Owl.gguf")
    catalog.rescan()
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [told]
    put(tmp_path, "acme/Wren-GGUF/Wren.gguf")
    catalog.rescan()
    assert (catalog.notes(), found(catalog, "wren").aliases) == ((), ("gone",))


@posix
def test_links_out_are_followed_where_that_is_asked_for(tmp_path: Path) -> None:
    put(tmp_path / "outside", "Falcon-GGUF/Falcon.gguf")
    put(tmp_path / "outside", "owl.gguf")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/acme").symlink_to(tmp_path / "outside")
    (tmp_path / "models/wren.gguf").symlink_to(tmp_path / "outside/owl.gguf")
    cards = Catalog([tmp_path / "models"], follow_links_out=True).cards()
    assert [(card.id, card.publisher, card.problem) for card in cards] == [
        ("falcon", "acme", None),
        ("wren", "local", None),
    ]


@posix
def test_a_link_that_the_user_names_is_followed(tmp_path: Path) -> None:
    target = put(tmp_path, "outside/owl.gguf")
    (tmp_path / "models").mkdir()
    link = tmp_path / "models/wren.gguf"
    link.symlink_to(target)
    assert [(card.id, card.problem) for card in Catalog([tmp_path / "models"], [link]).cards()] == [("wren", None)]


@posix
def test_a_models_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    put(tmp_path / "real", "acme/Falcon-GGUF/Falcon.gguf")
    (tmp_path / "models").symlink_to(tmp_path / "real")
    catalog = Catalog([tmp_path / "models", tmp_path / "real"])
    assert [(card.id, card.problem) for card in catalog.cards()] == [("falcon", None)]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_does_not_hang_a_scan(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "falcon.gguf")
    problems: list[str | None] = []

    def scan() -> None:
        problems.extend(card.problem for card in Catalog([tmp_path]).cards())

    scanning = threading.Thread(target=scan, daemon=True)
    scanning.start()
    scanning.join(10)
    assert problems == ["not a regular file"]


def test_a_folder_called_like_a_model_is_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "acme/falcon.gguf/Falcon-Q8_0.gguf")
    assert ids(Catalog([tmp_path])) == ["falcon"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_does_not_break_a_scan(tmp_path: Path) -> None:
    put(tmp_path, "acme/Falcon-GGUF/Falcon.gguf")
    put(tmp_path, "birds/Owl-GGUF/Owl.gguf").chmod(0)
    put(tmp_path, "closed/Wren-GGUF/Wren.gguf")
    (tmp_path / "closed").chmod(0)
    try:
        assert [(card.id, bool(card.problem)) for card in Catalog([tmp_path]).cards()] == [
            ("falcon", False),
            ("owl", True),
        ]
    finally:
        (tmp_path / "closed").chmod(0o700)


@posix
@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("two\nlines.gguf", "two_lines"),
        ("\x1b[31mred.gguf", "_[31mred"),
        ("owl \U0001f989.gguf", "owl \U0001f989"),
        ("--help.gguf", "--help"),
        ("e\u0301.gguf", "\u00e9"),
        ("a" * 250 + ".gguf", "a" * 250),
        ("a\u202eb.gguf", "a_b"),
        ("@q8_0:2.gguf", "@q8_0:2"),
        (" .gguf", "_"),
    ],
)
def test_odd_file_names_are_listed_and_found(tmp_path: Path, name: str, id: str) -> None:
    path = put(tmp_path, name)
    catalog = Catalog([tmp_path])
    (card,) = catalog.cards()
    assert (card.id, card.paths, card.problem) == (id, (path,), None)
    assert catalog.resolve(card.id) == catalog.resolve(name) == card


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not Unicode")
def test_names_that_are_not_unicode_give_ids_that_are(tmp_path: Path) -> None:
    os.rename(os.fsencode(put(tmp_path, "x.gguf")), os.fsencode(tmp_path) + b"/\xff\xfe.gguf")
    (card,) = Catalog([tmp_path]).cards()
    assert (card.id.encode(), card.display_name.encode(), card.problem) == (b"__", b"__", None)


def test_folders_that_are_none_hold_nothing(tmp_path: Path) -> None:
    file = put(tmp_path, "falcon.gguf")
    assert Catalog([tmp_path / "none", file, Path("a\0b")]).cards() == ()


def test_a_folder_without_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "MAX_ENTRIES", 5)
    for n in range(9):
        put(tmp_path, f"m{n}.gguf")
    assert len(Catalog([tmp_path]).cards()) == 5


# ---- again ----


def test_rescan_reads_only_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = reading(monkeypatch)
    put(tmp_path, "falcon.gguf")
    owl = put(tmp_path, "owl.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"x")
    catalog = Catalog([tmp_path])
    before = catalog.cards()
    assert sorted(read) == ["broken.gguf", "falcon.gguf", "owl.gguf"]
    read.clear()
    catalog.rescan()
    assert (read, catalog.cards()) == ([], before)
    put(tmp_path, "owl.gguf", llama(llama__context_length=99), [Tensor("a", (512,), Q4_K)])
    put(tmp_path, "wren.gguf")
    (tmp_path / "falcon.gguf").unlink()
    catalog.rescan()
    assert sorted(read) == ["owl.gguf", "wren.gguf"]
    assert ids(catalog) == ["broken", "owl", "wren"]
    assert found(catalog, "owl").max_context_length == 99
    assert found(catalog, "owl").paths == (owl,)


def test_a_scan_changes_nothing_on_disk(tmp_path: Path) -> None:
    put(tmp_path, "acme/Falcon-GGUF/Falcon.gguf")
    before = sorted(tmp_path.rglob("*"))
    Catalog([tmp_path, tmp_path / "none"]).cards()
    assert sorted(tmp_path.rglob("*")) == before


# ---- the bundled models ----


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = put(tmp_path, "package/models/lmlite-tiny.gguf")
    monkeypatch.setattr(module, "bundled_model", lambda: path)
    monkeypatch.setattr(module, "bundled_vision_model", lambda: tmp_path / "none")
    return path


@pytest.fixture
def seeing(tmp_path: Path, bundled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = put(tmp_path, "package/models/tiny-vision/lmlite-tiny-vision.gguf")
    put(tmp_path, "package/models/tiny-vision/mmproj-lmlite-tiny-vision.gguf", projector())
    monkeypatch.setattr(module, "bundled_vision_model", lambda: path)
    return path


def test_the_bundled_models_lie_in_the_package() -> None:
    models = Path(module.__file__).parents[2] / "models"
    assert bundled_model() == models / "lmlite-tiny.gguf"
    assert bundled_vision_model() == models / "lmlite-tiny-vision" / "lmlite-tiny-vision.gguf"


def test_the_bundled_model_that_sees_stands_beside_the_other(tmp_path: Path, bundled: Path, seeing: Path) -> None:
    catalog = Catalog([tmp_path / "models"], bundled=True)
    blind, card = catalog.cards()
    assert (blind.id, blind.type, blind.mmproj, blind.paths) == ("lmlite-tiny", "llm", None, (bundled,))
    assert (card.id, card.type, card.publisher, card.paths) == ("lmlite-tiny-vision", "vlm", "lmlite", (seeing,))
    assert card.mmproj == seeing.with_name("mmproj-lmlite-tiny-vision.gguf")
    assert found(catalog, "lmlite/lmlite-tiny-vision") == card


@pytest.mark.usefixtures("seeing")
def test_where_only_bundled_models_are_the_first_is_taken(tmp_path: Path) -> None:
    default = Catalog([tmp_path / "models"], bundled=True).default()
    assert default is not None and default.id == "lmlite-tiny"


def test_a_model_of_the_users_counts_as_one_even_with_a_bundled_models_name(tmp_path: Path, seeing: Path) -> None:
    own = put(tmp_path, "models/lmlite-tiny-vision.gguf")
    catalog = Catalog([tmp_path / "models"], bundled=True)
    (card,) = catalog.cards()
    assert card.paths == (own,) != (seeing,)
    assert catalog.default() == card


def test_the_bundled_model_stands_in_for_an_empty_list(tmp_path: Path, bundled: Path) -> None:
    catalog = Catalog([tmp_path / "models"], bundled=True)
    (card,) = catalog.cards()
    assert (card.id, card.publisher, card.paths) == ("lmlite-tiny", "lmlite", (bundled,))
    assert catalog.default() == card


def test_the_bundled_models_give_way_to_any_other(tmp_path: Path, bundled: Path, seeing: Path) -> None:
    put(tmp_path, "models/falcon.gguf")
    catalog = Catalog([tmp_path / "models"], bundled=True)
    assert ids(catalog) == ["falcon"]
    assert found(catalog, "lmlite/lmlite-tiny").paths == (bundled,)
    assert found(catalog, "lmlite-tiny-vision").paths == (seeing,)


def test_the_bundled_model_does_not_give_way_to_broken_files(tmp_path: Path, bundled: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/falcon.gguf").write_bytes(b"")
    assert ids(Catalog([tmp_path / "models"], bundled=True)) == ["falcon", "lmlite-tiny"]


@pytest.mark.usefixtures("seeing")
def test_the_bundled_models_are_served_only_where_they_are_wanted(tmp_path: Path) -> None:
    catalog = Catalog([tmp_path / "models"])
    assert catalog.cards() == ()
    assert catalog.resolve("lmlite-tiny") is None


def test_a_package_without_its_model_has_an_empty_list(tmp_path: Path, bundled: Path) -> None:
    bundled.unlink()
    assert Catalog([tmp_path / "models"], bundled=True).cards() == ()


# ---- where models are looked for ----


def lm_studio(home: Path) -> Path:
    models = home / "models"
    models.mkdir(parents=True)
    return models


def folders(user: Path, *extra: Path) -> list[Path]:
    return model_folders(user / ".lmlite", extra, {"HOME": str(user)})


def test_without_lm_studio_there_is_only_our_own_folder(tmp_path: Path) -> None:
    extra = tmp_path / "extra"
    assert folders(tmp_path, extra) == [tmp_path / ".lmlite/models", extra]


def test_lm_studios_models_are_found_in_either_home(tmp_path: Path) -> None:
    newer = lm_studio(tmp_path / ".lmstudio")
    assert folders(tmp_path)[1:] == [newer]
    older = lm_studio(tmp_path / ".cache/lm-studio")
    assert folders(tmp_path)[1:] == [older]


def test_lm_studios_pointer_leads_to_its_home(tmp_path: Path) -> None:
    lm_studio(tmp_path / ".lmstudio")
    moved = lm_studio(tmp_path / "moved")
    (tmp_path / ".lmstudio-home-pointer").write_text(f"{tmp_path / 'moved'}\n")
    assert folders(tmp_path)[1:] == [moved]


def test_lm_studios_settings_name_another_folder(tmp_path: Path) -> None:
    lm_studio(tmp_path / ".lmstudio")
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (tmp_path / ".lmstudio/settings.json").write_text(json.dumps({"downloadsFolder": str(downloads)}))
    assert folders(tmp_path)[1:] == [downloads]


@pytest.mark.parametrize(
    "settings",
    [
        b"",
        b"{",
        b"[]",
        b'{"downloadsFolder": 7}',
        b'{"downloadsFolder": "relative"}',
        b'{"downloadsFolder": "/none/\\u0000"}',
        b'{"downloadsFolder": "/none/at/all"}',
        b"[" * 200_000,
        b" " * (2 << 20),
        b"\xff\xfe",
    ],
)
def test_odd_settings_of_lm_studio_are_ignored(tmp_path: Path, settings: bytes) -> None:
    models = lm_studio(tmp_path / ".lmstudio")
    (tmp_path / ".lmstudio/settings.json").write_bytes(settings)
    assert folders(tmp_path)[1:] == [models]


@pytest.mark.parametrize("pointer", [b"", b"relative", b"\0", b"\xff", b"x" * (2 << 20)])
def test_an_odd_pointer_of_lm_studio_is_ignored(tmp_path: Path, pointer: bytes) -> None:
    models = lm_studio(tmp_path / ".lmstudio")
    (tmp_path / ".lmstudio-home-pointer").write_bytes(pointer)
    assert folders(tmp_path)[1:] == [models]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_settings_that_are_no_files_are_ignored(tmp_path: Path) -> None:
    models = lm_studio(tmp_path / ".lmstudio")
    os.mkfifo(tmp_path / ".lmstudio/settings.json")
    (tmp_path / ".lmstudio-home-pointer").mkdir()
    assert folders(tmp_path)[1:] == [models]


def test_each_folder_is_listed_once_and_in_order(tmp_path: Path) -> None:
    own, models = tmp_path / ".lmlite/models", lm_studio(tmp_path / ".lmstudio")
    extra = tmp_path / "extra"
    assert folders(tmp_path, models, extra, extra, own) == [own, models, extra]


def test_without_a_home_there_is_no_lm_studio(tmp_path: Path) -> None:
    assert model_folders(tmp_path, [], {}) == [tmp_path / "models"]


# ---- what is kept from start to start ----


def reading(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose headers are read from now on."""
    read: list[str] = []
    original = reader.read_header

    def read_header(path: Path) -> reader.Header:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(reader, "read_header", read_header)
    return read


THINKS = "{% if enable_thinking %}{{ tools }}{% endif %}"


def test_the_next_start_reads_only_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "home"
    state.mkdir()
    models = tmp_path / "models"
    put(models, "acme/Falcon/Falcon-Q4_K_M.gguf", llama(tokenizer__chat_template=THINKS))
    put(models, "acme/embed/embed-F16.gguf", bert())
    put(models, "acme/Falcon/mmproj-F16.gguf", projector())
    put_parts(models, "acme/Split/Split-Q4_K_M", 2)
    (models / "broken.gguf").write_bytes(b"x")
    first = Catalog([models], state=state).cards()
    assert sorted(path.name for path in state.iterdir()) == ["headers.json", "model-ids.json"]
    read = reading(monkeypatch)
    assert Catalog([models], state=state).cards() == first
    assert [name for name in read if not name.startswith("Split")] == []
    put(models, "owl.gguf")
    (models / "broken.gguf").write_bytes(b"xy")
    del read[:]
    after = Catalog([models], state=state).cards()
    assert {name for name in read if not name.startswith("Split")} == {"owl.gguf", "broken.gguf"}
    assert {card.id for card in after} == {card.id for card in first} | {"owl"}


@pytest.mark.parametrize("damage", [b"", b"[]", b"\n[[1]]", b"x" * 100, b"\xff"])
def test_a_damaged_file_of_headers_is_made_again(
    tmp_path: Path, damage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "models/falcon.gguf")
    folder, kept = tmp_path / "models", tmp_path / "headers.json"
    expected = Catalog([folder], state=tmp_path).cards()
    sound = kept.read_bytes()
    kept.write_bytes(damage)
    assert Catalog([folder], state=tmp_path).cards() == expected
    assert kept.read_bytes() == sound
    kept.write_bytes(sound.replace(b"4096", b"4097"))
    assert Catalog([folder], state=tmp_path).cards() == expected
    kept.write_bytes(sound)
    read = reading(monkeypatch)
    monkeypatch.setattr(known_headers, "_head", lambda body: b"another reader")
    assert (Catalog([folder], state=tmp_path).cards(), read) == (expected, ["falcon.gguf"])


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    put(tmp_path, "models/falcon.gguf")
    for name in ("headers.json", "model-ids.json"):
        (tmp_path / name).mkdir()
    for state in (tmp_path, tmp_path / "none"):
        assert ids(Catalog([tmp_path / "models"], state=state)) == ["falcon"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["headers.json", "model-ids.json", "models"]


def test_a_look_at_an_unchanged_disk_leaves_the_list_as_it_is(tmp_path: Path) -> None:
    path = put(tmp_path, "acme/Falcon/Falcon-Q4_K_M.gguf")
    link = tmp_path / "acme/Falcon/Later-Q4_K_M.gguf"
    link.symlink_to("gone.gguf")
    catalog = Catalog([tmp_path])
    before = catalog.cards()
    catalog.rescan()
    assert catalog.cards() is before
    path.with_name("gone.gguf").write_bytes(path.read_bytes())
    catalog.rescan()
    assert catalog.cards() is not before and all(card.problem is None for card in catalog.cards())


def test_what_lies_behind_the_tensors_is_not_of_the_models_size(tmp_path: Path) -> None:
    path = put(tmp_path, "models/falcon.gguf")
    size = path.stat().st_size
    for hole, expected in ((1 << 20, size + (1 << 20)), (1 << 30, size)):  # padding, and what is none
        os.truncate(path, size + hole)
        for _ in range(2):  # read, and kept from then
            assert [card.size_bytes for card in Catalog([tmp_path / "models"], state=tmp_path).cards()] == [expected]

"""What the header reader makes of sound files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmlite.core.disk.chat_template import reads_tools
from lmlite.core.disk.gguf import Facts, Header, facts, nominal_bits, read_header
from tests.core.gguf_files import (
    F16,
    F32,
    Q4_K,
    Q8_0,
    Tensor,
    Typed,
    bert,
    floats,
    gguf,
    llama,
    projector,
    strings,
    uint32,
)


def header_of(tmp_path: Path, content: bytes) -> Header:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return read_header(path)


def facts_of(tmp_path: Path, values: dict[str, Any], *tensors: Tensor) -> Facts:
    return facts([header_of(tmp_path, gguf(values, tensors or (Tensor("weight"),)))])


def test_scalars_and_strings_are_kept_and_arrays_are_not(tmp_path: Path) -> None:
    header = header_of(
        tmp_path,
        gguf({"a": 7, "b": "text", "c": True, "d": 0.5, "e": strings(["x"]), "f": floats(9), "g": "after"}),
    )
    assert header.values == {"a": 7, "b": "text", "c": True, "d": 0.5, "g": "after"}


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        (0, b"\xff", 255),
        (1, b"\xff", -1),
        (2, b"\xff\xff", 65535),
        (3, b"\xff\xff", -1),
        (5, b"\xff\xff\xff\xff", -1),
        (10, b"\xff" * 8, 2**64 - 1),
        (11, b"\xff" * 8, -1),
        (12, bytes(7) + b"\x40", 2.0),
    ],
)
def test_every_number_type_is_read(tmp_path: Path, kind: int, raw: bytes, value: float) -> None:
    assert header_of(tmp_path, gguf({"n": Typed(kind, raw), "after": 1})).values == {"n": value, "after": 1}


def test_a_boolean_is_no_integer(tmp_path: Path) -> None:
    header = header_of(tmp_path, gguf({"llama.block_count": True}))
    assert header.integer("llama.block_count") is None


def test_keys_behind_a_large_vocabulary_are_found(tmp_path: Path) -> None:
    tokens = strings([f"token {n}" * (n % 7) for n in range(50_000)] + ["x" * 600_000, "", "y"])
    header = header_of(tmp_path, gguf({"tokenizer.ggml.tokens": tokens, "general.file_type": 7}))
    assert header.values == {"general.file_type": 7}
    assert header.incomplete is None


def test_version_2_is_read(tmp_path: Path) -> None:
    assert header_of(tmp_path, gguf(llama(), version=2)).version == 2


def test_tensor_table_is_summed(tmp_path: Path) -> None:
    tensors = [Tensor("a", (256, 3), Q4_K), Tensor("b", (32, 2), Q8_0), Tensor("c", (5,), F32)]
    header = header_of(tmp_path, gguf(llama(), tensors))
    assert header.tensors.n_params == 768 + 64 + 5
    assert header.tensors.n_bytes == 3 * 144 + 2 * 34 + 20
    assert header.tensors.elements == {"Q4_K": 768, "Q8_0": 64, "F32": 5}
    assert header.tensors.end == header.file_bytes


def test_alignment_of_the_file_is_respected(tmp_path: Path) -> None:
    tensors = [Tensor("a", (3,)), Tensor("b", (3,))]
    header = header_of(tmp_path, gguf(llama(general__alignment=uint32(256)), tensors, alignment=256))
    assert header.alignment == 256
    assert header.tensors.end == header.file_bytes


def test_facts_of_a_text_model(tmp_path: Path) -> None:
    known = facts_of(tmp_path, llama())
    assert (known.arch, known.quantization, known.context_length) == ("llama", "Q4_K_M", 4096)
    assert (known.is_embedding, known.is_projector) == (False, False)
    assert (known.has_chat_template, known.trained_for_tool_use) == (True, False)


@pytest.mark.parametrize(
    ("file_type", "name"), [(0, "F32"), (1, "F16"), (7, "Q8_0"), (17, "Q5_K_M"), (30, "IQ4_XS"), (38, "MXFP4")]
)
def test_quantization_is_spelled_as_lm_studio_does(tmp_path: Path, file_type: int, name: str) -> None:
    assert facts_of(tmp_path, llama(general__file_type=file_type)).quantization == name


def test_a_guessed_file_type_still_counts(tmp_path: Path) -> None:
    assert facts_of(tmp_path, llama(general__file_type=1024 + 15)).quantization == "Q4_K_M"


@pytest.mark.parametrize("file_type", [None, 4, 777])
def test_without_a_file_type_the_dominant_tensor_type_counts(tmp_path: Path, file_type: int | None) -> None:
    values = llama(general__file_type=file_type)
    if file_type is None:
        del values["general.file_type"]
    assert facts_of(tmp_path, values, Tensor("a", (64,), F32), Tensor("b", (96,), Q8_0)).quantization == "Q8_0"


def test_a_file_without_tensors_has_no_quantization_of_its_own(tmp_path: Path) -> None:
    values = llama()
    del values["general.file_type"]
    known = facts([header_of(tmp_path, gguf(values, ()))])
    assert (known.quantization, known.bits_per_weight, known.params_string) == ("?", None, None)


@pytest.mark.parametrize(
    ("n", "shown"),
    [(7, "7"), (1000, "1K"), (260_000, "260K"), (999_960, "1M"), (999_400, "999K"), (22_700_000, "22.7M"),
     (99_960_000, "100M"), (7_000_000_000, "7B"), (6_740_000_000, "6.7B"), (1_000_000_000_000, "1T")],
)  # fmt: skip
def test_parameters_are_counted_and_scaled(tmp_path: Path, n: int, shown: str) -> None:
    known = facts([header_of(tmp_path, gguf(llama(), [Tensor("a", (n,))], data=False))])
    assert (known.n_params, known.params_string) == (n, shown)


@pytest.mark.parametrize("label", ["7B", "8x7B", "30B-A3B", "1.5B", "260K"])
def test_a_sane_size_label_wins_over_the_count(tmp_path: Path, label: str) -> None:
    assert facts_of(tmp_path, llama(general__size_label=label)).params_string == label


@pytest.mark.parametrize("label", ["", "huge", "7B\n", "٧B", "B", "7B" * 40, "<script>"])
def test_an_odd_size_label_is_ignored(tmp_path: Path, label: str) -> None:
    assert facts_of(tmp_path, llama(general__size_label=label)).params_string == "4"


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [("Q4_0", 4), ("Q4_K_M", 4), ("Q8_0", 8), ("F16", 16), ("BF16", 16), ("F32", 32), ("IQ2_XXS", 2), ("MXFP4", 4),
     ("TQ1_0", 1), ("UD-Q6_K_XL", 6), ("?", None)],
)  # fmt: skip
def test_nominal_bits_are_those_of_the_name(quantization: str, bits: int | None) -> None:
    assert nominal_bits(quantization) == bits


def test_bits_per_weight_is_what_the_tensors_take(tmp_path: Path) -> None:
    assert facts_of(tmp_path, llama(), Tensor("a", (256,), Q4_K)).bits_per_weight == 4.5
    assert facts_of(tmp_path, llama(), Tensor("a", (64,), F16)).bits_per_weight == 16.0


def test_parts_of_a_split_model_add_up(tmp_path: Path) -> None:
    first = header_of(tmp_path, gguf(llama(split__no=0, split__count=2), ()))
    second = header_of(tmp_path, gguf({"split.no": 1, "split.count": 2}, [Tensor("a", (256,), Q4_K)]))
    known = facts([first, second])
    assert (known.arch, known.n_params, known.bits_per_weight, known.split_count) == ("llama", 256, 4.5, 2)


@pytest.mark.parametrize(("pooling", "is_embedding"), [(0, False), (1, True), (3, True), (4, True), (0xFFFFFFFF, False)])
def test_pooling_makes_an_embedding_model(tmp_path: Path, pooling: int, is_embedding: bool) -> None:
    assert facts_of(tmp_path, llama("qwen3", qwen3__pooling_type=pooling)).is_embedding is is_embedding


def test_an_encoder_is_an_embedding_model_whatever_its_pooling(tmp_path: Path) -> None:
    assert facts_of(tmp_path, bert(bert__pooling_type=0)).is_embedding


@pytest.mark.parametrize("head", ["cls.weight", "cls.output.weight"])
def test_a_classification_head_makes_a_reranker_of_an_encoder_without_pooling(tmp_path: Path, head: str) -> None:
    for arch, pooling, reranks in (("bert", 0, True), ("bert", 1, False), ("llama", 0, False), ("qwen3", 4, True)):
        values = llama(arch, **{f"{arch}__pooling_type": pooling})
        known = facts([header_of(tmp_path, gguf(values, [Tensor("a"), Tensor(head)]))])
        assert known.is_reranker is reranks
        assert known.is_embedding is (arch != "llama")
    assert not facts_of(tmp_path, bert(bert__pooling_type=0)).is_reranker


def test_projector_is_told_by_its_architecture(tmp_path: Path) -> None:
    assert facts_of(tmp_path, projector()).is_projector


@pytest.mark.parametrize(
    ("said", "expected"),
    [({"vision": True}, (True, False)), ({"vision": True, "audio": True}, (True, True)), ({"audio": True}, (False, True)),
     ({"vision": False, "audio": True}, (False, True)), ({}, (True, False))],
)  # fmt: skip
def test_a_projector_says_what_it_can(tmp_path: Path, said: dict[str, bool], expected: tuple[bool, bool]) -> None:
    """The oldest say nothing: they all see."""
    values = {"general.architecture": "clip", **{f"clip.has_{sense}_encoder": has for sense, has in said.items()}}
    known = facts_of(tmp_path, values)
    assert (known.sees, known.hears) == expected
    text = facts_of(tmp_path, llama())
    assert not text.sees and not text.hears


@pytest.mark.parametrize(
    "template",
    ["{% if tools %}x{% endif %}", "{{ tools | tojson }}", "{%- for t in tools -%}", "{# a #}{% if a and tools %}"],
)
def test_template_that_reads_tools_is_seen(template: str) -> None:
    assert reads_tools(template)


@pytest.mark.parametrize(
    "template",
    ["You have tools.", "{# tools #}", "{{ message.tools }}", "{{ message['tools'] }}", "{{ mytools }}", "{% if tools"],
)
def test_template_that_only_mentions_tools_is_not(template: str) -> None:
    assert not reads_tools(template)


def test_a_separate_tool_template_means_tool_use(tmp_path: Path) -> None:
    known = facts_of(tmp_path, llama(tokenizer__chat_template=b"{{ messages }}") | {
        "tokenizer.chat_template.tool_use": "{{ tools }}"
    })  # fmt: skip
    assert known.trained_for_tool_use


def test_text_that_is_not_utf8_is_readable_all_the_same(tmp_path: Path) -> None:
    assert header_of(tmp_path, gguf({"general.name": b"a\xffb"})).text("general.name") == "a\ufffdb"

"""Which files of a repository are fetched for a model."""

from __future__ import annotations

import pytest

from lmlite.download import RemoteFile
from lmlite.errors import NothingToDownload
from lmlite.hub.choice import choose
from lmlite.hub.listing import Listing
from lmlite.hub.names import Wanted


def chosen(files: dict[str, int], *, quantization: str | None = None, file: str | None = None) -> list[str]:
    name = "falcon-GGUF"
    listed = Listing(f"acme/{name}", "main", tuple(RemoteFile(path, size, "sha256:0") for path, size in files.items()))
    return [file.name for file in choose(listed, Wanted("acme", name, file=file, quantization=quantization))]


def quants(*names: str) -> dict[str, int]:
    return {f"falcon-{name}.gguf": 1000 + i for i, name in enumerate(names)}


def test_the_quantization_that_is_named_is_taken_in_any_case() -> None:
    files = quants("Q4_K_M", "Q8_0", "IQ4_XS", "UD-Q4_K_XL", "BF16")
    for name in ("Q8_0", "q8_0", "iq4_xs", "ud-q4_k_xl", "bf16"):
        assert [file.lower() for file in chosen(files, quantization=name)] == [f"falcon-{name.lower()}.gguf"]


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (("Q8_0", "Q4_K_M", "Q4_K_S", "Q2_K"), "Q4_K_M"),
        (("F16", "Q8_0", "Q4_0", "Q4_K_S", "Q5_K_M"), "Q4_K_S"),
        (("F16", "IQ4_XS", "Q5_K_M"), "IQ4_XS"),
        (("F16", "Q8_0", "MXFP4"), "MXFP4"),
        (("F16", "Q3_K_M", "Q5_K_M"), "Q5_K_M"),
        (("F16", "Q8_0"), "Q8_0"),
        (("F32", "BF16"), "BF16"),
    ],
)
def test_without_one_it_is_q4_k_m_or_what_is_nearest_to_four_bits(there: tuple[str, ...], taken: str) -> None:
    assert chosen(quants(*there)) == [f"falcon-{taken}.gguf"]


@pytest.mark.parametrize("asked", ["Q4_K_M", "q4_k_m", "i1-Q4_K_M", None])
def test_a_quantization_with_an_importance_matrix_is_found_by_its_usual_name(asked: str | None) -> None:
    files = quants("i1-Q4_0", "i1-Q4_K_S", "i1-IQ4_XS", "i1-Q4_K_M", "i1-Q6_K")
    assert chosen(files, quantization=asked) == ["falcon-i1-Q4_K_M.gguf"]


def test_a_quantization_of_exactly_the_name_goes_before_one_with_an_importance_matrix() -> None:
    files = {"falcon.i1-Q4_K_M.gguf": 1, "falcon-Q4_K_M.gguf": 2, "falcon-Q4_K_S.gguf": 1}
    assert chosen(files) == chosen(files, quantization="Q4_K_M") == ["falcon-Q4_K_M.gguf"]
    assert chosen(files, quantization="i1-q4_k_m") == ["falcon.i1-Q4_K_M.gguf"]
    with pytest.raises(NothingToDownload):
        chosen(quants("UD-Q4_K_M"), quantization="Q4_K_M")


def test_where_no_name_tells_a_quantization_the_smallest_is_taken() -> None:
    assert chosen({"falcon-large.gguf": 9, "falcon-small.gguf": 3}) == ["falcon-small.gguf"]


def test_parts_are_fetched_together_in_order() -> None:
    parts = {f"falcon-Q8_0-0000{i}-of-00003.gguf": 10 for i in (2, 1, 3)}
    assert chosen({**parts, "falcon-Q2_K.gguf": 1}, quantization="q8_0") == sorted(parts)
    assert chosen(parts, file="falcon-Q8_0-00002-of-00003.gguf") == sorted(parts)


def test_a_folder_per_quantization_names_it() -> None:
    files = {"Q8_0/falcon-00001-of-00002.gguf": 9, "Q8_0/falcon-00002-of-00002.gguf": 9, "Q4_K_M/falcon.gguf": 5}
    assert chosen(files) == ["Q4_K_M/falcon.gguf"]
    assert chosen(files, quantization="Q8_0") == list(files)[:2]


def test_a_model_that_lacks_a_part_is_refused_and_a_whole_one_preferred() -> None:
    files = {"falcon-Q4_K_M-00001-of-00002.gguf": 1, "falcon-Q8_0.gguf": 2}
    assert chosen(files) == ["falcon-Q8_0.gguf"]
    with pytest.raises(NothingToDownload, match="1 parts"):
        chosen(files, quantization="Q4_K_M")


def test_the_projector_comes_along_in_f16_if_there_is_one() -> None:
    files = quants("Q4_K_M", "Q8_0") | {"mmproj-falcon-f32.gguf": 1, "mmproj-falcon-f16.gguf": 1, "mmproj-falcon-bf16.gguf": 1}
    assert chosen(files) == ["falcon-Q4_K_M.gguf", "mmproj-falcon-f16.gguf"]
    assert chosen(files, file="falcon-Q8_0.gguf") == ["falcon-Q8_0.gguf", "mmproj-falcon-f16.gguf"]
    assert chosen(files, file="mmproj-falcon-f32.gguf") == ["mmproj-falcon-f32.gguf"]
    assert chosen(files, quantization="q8_0")[1:] == ["mmproj-falcon-f16.gguf"]


def test_a_projector_or_an_importance_matrix_is_no_model() -> None:
    with pytest.raises(NothingToDownload, match="no GGUF files"):
        chosen({"mmproj-f16.gguf": 1, "imatrix-falcon.gguf": 1})


def test_of_several_models_the_one_that_bears_the_repositorys_name_is_taken() -> None:
    assert chosen({"draft-Q4_K_M.gguf": 1, "falcon-Q4_K_M.gguf": 9}) == ["falcon-Q4_K_M.gguf"]


def test_a_refusal_lists_what_there_is() -> None:
    with pytest.raises(NothingToDownload, match="no Q3_K_L; there is Q4_K_M, Q8_0") as refused:
        chosen(quants("Q8_0", "Q4_K_M"), quantization="Q3_K_L")
    assert refused.value.known == ("Q4_K_M", "Q8_0")
    with pytest.raises(NothingToDownload, match="no GGUF file 'other.gguf'"):
        chosen(quants("Q8_0"), file="other.gguf")
    with pytest.raises(NothingToDownload, match="has no GGUF files"):
        chosen({})

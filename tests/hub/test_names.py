"""What a user may name, and what a hub may: nothing that passes leads out of a folder."""

from __future__ import annotations

import pytest

from lmlite.errors import HubError, InvalidRequest
from lmlite.hub import names
from lmlite.hub.names import Wanted, parse

HUB = "https://huggingface.co"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("acme/Falcon-7B-GGUF", Wanted("acme", "Falcon-7B-GGUF")),
        ("acme/falcon@q4_k_m", Wanted("acme", "falcon", quantization="q4_k_m")),
        (f"{HUB}/acme/falcon", Wanted("acme", "falcon")),
        (f"{HUB}/acme/falcon/", Wanted("acme", "falcon")),
        (f"{HUB}/acme/falcon@Q8_0", Wanted("acme", "falcon", quantization="Q8_0")),
        (f"{HUB}/acme/falcon/tree/main", Wanted("acme", "falcon")),
        (f"{HUB}/acme/falcon/tree/refs%2Fpr%2F1", Wanted("acme", "falcon", "refs/pr/1")),
        (f"{HUB}/acme/falcon/resolve/main/a.gguf?download=true", Wanted("acme", "falcon", "main", "a.gguf")),
        (f"{HUB}/acme/falcon/blob/v1.0/Q4/a%20b.gguf", Wanted("acme", "falcon", "v1.0", "Q4/a b.gguf")),
        ("http://127.0.0.1:8080/hf/acme/falcon", Wanted("acme", "falcon")),
    ],
)
def test_a_repository_a_quantization_or_a_file_can_be_named(text: str, wanted: Wanted) -> None:
    assert parse(text, None, "http://127.0.0.1:8080/hf") == wanted


def test_a_requests_own_field_names_the_quantization() -> None:
    assert parse("acme/falcon", "Q8_0").quantization == "Q8_0"
    assert parse(f"{HUB}/acme/falcon", "Q8_0").quantization == "Q8_0"
    assert parse("acme/falcon@q8_0", "Q8_0").quantization == "Q8_0"


@pytest.mark.parametrize(
    ("text", "quantization"),
    [
        ("acme/falcon@q4_0", "q8_0"),
        (f"{HUB}/acme/falcon/resolve/main/a.gguf", "q8_0"),
        ("acme/falcon", "../x"),
        ("acme/falcon", ""),
    ],
)
def test_a_quantization_that_says_something_else_is_refused(text: str, quantization: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(text, quantization)
    assert refused.value.param == "quantization"


@pytest.mark.parametrize(
    "text",
    [
        "", "falcon", "../x", "a/../../b", "a/..", "../..", ".a/b", "a/.b", "a/b/c", "/a/b", "a//b", "a/b/", "a\\b/c",
        "C:\\x", "C:/x", "%2e", "%2e%2e/%2e%2e", "a/b%00", "a/b\0", "a/b\n", "a/é", "a/b--c", "a/b..c", "-a/b", "a/b-",
        "a" * 10_000, "a/" + "b" * 97, "a/b@", "a/b@../x", "a/b@x y", "~/x", "a/$HOME",
        "https://evil.example/acme/falcon", "https://huggingface.co.evil.example/acme/falcon", "file:///etc/passwd",
        "ftp://huggingface.co/acme/falcon", "https://user:pass@huggingface.co/acme/falcon", "https://[::1/acme/falcon",
        f"{HUB}/acme", HUB, f"{HUB}/../x", f"{HUB}/%2e%2e/x", f"{HUB}/a%2fb/c", f"{HUB}/acme/falcon/wiki/main",
        f"{HUB}/acme/falcon/resolve", f"{HUB}/acme/falcon/resolve/../x.gguf", f"{HUB}/acme/falcon/resolve/main/../../x.gguf",
        f"{HUB}/acme/falcon/resolve/main/%2e%2e%2f%2e%2e%2fx.gguf", f"{HUB}/acme/falcon/resolve/main/%2fetc%2fx.gguf",
        f"{HUB}/acme/falcon/resolve/main/a%00.gguf", f"{HUB}/acme/falcon/resolve/main/a.safetensors",
        "https://huggingface.co:99999/a/b", "https://datasets/acme/falcon", "http://127.0.0.1:1/acme/falcon",
    ],
)  # fmt: skip
def test_what_names_no_model_of_the_hub_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(text)
    assert refused.value.status == 400 and refused.value.param == "model"
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("path", ["a.gguf", "Q4/a-00001-of-00002.gguf", "ü/日本.gguf", "-a.gguf", "a..b.gguf", ".a/b.gguf"])
def test_paths_inside_a_repository_pass(path: str) -> None:
    assert names.problem(path) is None


@pytest.mark.parametrize(
    "path",
    ["", "/", "/a.gguf", "../a.gguf", "a/../b.gguf", "a/./b", "a//b", "a/", "a\\b.gguf", "C:a.gguf", "c:/a", "a\0b", "a\nb",
     "a\u202eb", "\ud800", "x" * 256, "é" * 128],
)  # fmt: skip
def test_paths_that_leave_the_repository_or_hide_what_they_are_do_not(path: str) -> None:
    assert names.problem(path) is not None


@pytest.mark.parametrize(
    "paths",
    [["a.gguf", "A.GGUF"], ["Q4/a.gguf", "q4/a.gguf"], ["é.gguf", "e\u0301.gguf"], ["a.gguf", "a.gguf/b.gguf"], ["a", "a"]],
)
def test_paths_that_are_one_on_some_disks_clash(paths: list[str]) -> None:
    with pytest.raises(HubError):
        names.refuse_clashes(paths)
    names.refuse_clashes(paths[:1])


def test_the_catalogue_sees_files_one_folder_deep_and_none_that_hide() -> None:
    assert names.is_visible("a.gguf") and names.is_visible("Q4/a.gguf")
    assert not names.is_visible("a/b/c.gguf") and not names.is_visible(".download/a.gguf")

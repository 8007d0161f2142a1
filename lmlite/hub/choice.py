"""Which files of a repository make the model that was asked for (contract section 2, "Quant picking").

A quantization that was named; else Q4_K_M, else what is nearest to four bits, else the smallest. All parts of a split
model, and the projector of one that sees.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from ..download import RemoteFile
from ..errors import NothingToDownload
from ..records import dataclass
from .listing import Listing
from .names import Wanted

USUAL: Final = "q4_k_m"
SHOWN_MAX: Final = 40
"""Quantizations that an error names; repositories have up to some thirty."""

_QUANT: Final = re.compile(
    r"(?:^|[-._])((?:ud-|i1-)?(?:(?:i?q[0-9]|tq[12])(?:_[0-9a-z]{1,4}){0,3}|b?f16|f32|fp16|fp32|mxfp4(?:_moe)?|nvfp4))$",
    re.IGNORECASE,
)
_PART: Final = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})", re.DOTALL)
_BITS: Final = re.compile(r"(?:tq|q|fp|f)([0-9]{1,2})")
_PROJECTORS: Final = ("f16", "bf16", "q8_0", "f32")
"""Best first: F16 is the one that every backend runs well."""


@dataclass(slots=True, frozen=True)
class Variant:
    """One model of a repository in one quantization; `quant` is lower case, "?" where its name tells none."""

    quant: str
    base: str  # the name without folder, quantization and part
    folder: str
    files: tuple[RemoteFile, ...]
    missing: int = 0  # parts that the repository does not have

    @property
    def usual_quant(self) -> str:
        """The quantization itself; `i1-` only says that an importance matrix was used, which most do without saying."""
        return self.quant.removeprefix("i1-")

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def choose(listing: Listing, wanted: Wanted) -> tuple[RemoteFile, ...]:
    """The model's files in order of its parts, then its projector. Raises `NothingToDownload`."""
    models = [file for file in listing.files if not _stands_beside(file)]
    projectors = [file for file in listing.files if _is_projector(file)]
    if wanted.file is not None:
        if alone := [file for file in projectors if file.name == wanted.file]:
            return tuple(alone)
        variant = _of_file(variants(models), wanted)
    else:
        variant = _of_quantization(variants(models), wanted)
    if variant.missing:
        raise NothingToDownload(f"{listing.repo} has {variant.missing} parts of {variant.files[0].name!r} too few")
    return (*variant.files, *_projector_for(variant, projectors))


def offered(listing: Listing) -> list[Variant]:
    """What can be asked for by its quantization, the smallest first."""
    found: dict[str, Variant] = {}
    for variant in sorted(variants(file for file in listing.files if not _stands_beside(file)), key=lambda v: v.size):
        if variant.quant != "?" and not variant.missing:
            found.setdefault(variant.quant, variant)
    return list(found.values())


def variants(files: Iterable[RemoteFile]) -> list[Variant]:
    groups: dict[tuple[str, str, int], list[tuple[int, RemoteFile]]] = {}
    for file in files:
        folder, _, name = file.name.rpartition("/")
        stem, part, parts = name[: -len(".gguf")], 1, 1
        if (split := _PART.fullmatch(stem)) and 1 <= int(split[2]) <= int(split[3]):
            stem, part, parts = split[1], int(split[2]), int(split[3])
        groups.setdefault((folder, stem, parts), []).append((part, file))
    return [_variant(*key, sorted(group, key=lambda item: item[0])) for key, group in groups.items()]


def _variant(folder: str, stem: str, parts: int, group: Sequence[tuple[int, RemoteFile]]) -> Variant:
    found = _QUANT.search(stem) or _QUANT.search(folder)
    base = stem[: found.start()] if found and found.string == stem else stem
    quant = found[1].lower() if found else "?"
    return Variant(quant, base, folder, tuple(file for _, file in group), parts - len(group))


def _of_file(found: list[Variant], wanted: Wanted) -> Variant:
    for variant in found:
        if any(file.name == wanted.file for file in variant.files):
            return variant
    raise NothingToDownload(f"{wanted.repo} has no GGUF file {wanted.file!r}", _shown(found))


def _of_quantization(found: list[Variant], wanted: Wanted) -> Variant:
    if not found:
        raise NothingToDownload(f"{wanted.repo} has no GGUF files")
    asked = wanted.quantization.lower() if wanted.quantization else None
    fitting = found if asked is None else [variant for variant in found if variant.quant == asked]
    if not fitting:
        fitting = [variant for variant in found if variant.usual_quant == asked]
    if not fitting:
        raise NothingToDownload(f"{wanted.repo} has no {wanted.quantization}", _shown(found))
    return min(fitting, key=lambda variant: _rank(variant, wanted))


def _rank(variant: Variant, wanted: Wanted) -> tuple[object, ...]:
    """Whole ones first, those that bear the repository's name, then by quantization. Of two as far from four bits, more."""
    plain = _plain(variant.base)
    bits = _bits(variant.quant)
    distance = 99 if bits is None else abs(bits - 4)
    return (
        variant.missing > 0,
        not (plain and _plain(wanted.name).startswith(plain)),
        variant.usual_quant != USUAL,
        variant.quant != USUAL,
        distance,
        -(bits or 0),
        "_k" not in variant.quant,
        variant.size,
        variant.files[0].name,
    )


def _bits(quant: str) -> int | None:
    found = _BITS.search(quant)
    return int(found[1]) if found else None


def _projector_for(variant: Variant, projectors: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """The best one beside the model, or at the repository's top."""

    def rank(file: RemoteFile) -> tuple[object, ...]:
        folder, _, name = file.name.rpartition("/")
        found = _QUANT.search(name[: -len(".gguf")]) or re.search(r"(?<![a-z0-9])(b?f16|f32|q8_0)(?![a-z0-9])", name.lower())
        quant = found[1].lower() if found else "?"
        place = _PROJECTORS.index(quant) if quant in _PROJECTORS else len(_PROJECTORS)
        return folder != variant.folder, place, file.size, file.name

    near = [file for file in projectors if file.name.rpartition("/")[0] in (variant.folder, "")]
    return (min(near, key=rank),) if near else ()


def _is_projector(file: RemoteFile) -> bool:
    return "mmproj" in file.name.rpartition("/")[2].lower()


def _stands_beside(file: RemoteFile) -> bool:
    return _is_projector(file) or file.name.rpartition("/")[2].lower().startswith("imatrix")


def _shown(found: Iterable[Variant]) -> tuple[str, ...]:
    quants = sorted({variant.quant.upper() for variant in found if variant.quant != "?"})
    return tuple(quants[:SHOWN_MAX])


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]+", "-", name.lower())

"""Puts several builds of the same objects, each for other instructions of one CPU, side by side into one library.

    kernels.py rename SET FOLDER OBJECT...        copies of the objects into FOLDER as SET-0.o, SET-1.o, ...: all that
                                                  they define has the set's name behind its own
    kernels.py choose FILE SET,SET,... FOLDER     FILE (C): each function of all sets under its own name, which goes on to
                                                  the set that lm_kernels_level (kernels.cpp) says

Renaming is what makes it safe: else the linker would take, say, a function of std::vector that every set has from
whichever set comes first, and a CPU without those instructions would run it. For the same reason nothing in a set may
run by itself when the library is loaded. Only ELF of 64 bits, little-endian.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SECTION = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
SYMTAB, GROUP = 2, 17
RUN_AT_LOAD = (".init_array", ".ctors", ".preinit_array")
GLOBAL, WEAK, UNIQUE = 1, 2, 10  # what other objects see
FUNCTION = 2
X86_64, AARCH64 = 62, 183


class Symbol(NamedTuple):
    name: bytes
    at: int  # its entry's place in the file
    binding: int
    type: int
    section: int  # 0: defined elsewhere


class Elf:
    """An object file that can be given other names for its symbols."""

    def __init__(self, content: bytes):
        if content[:6] != b"\x7fELF\x02\x01":
            raise SystemExit("lmlite: kernels.py understands objects of 64-bit little-endian ELF only")
        self.content = bytearray(content)
        self.machine = struct.unpack_from("<H", content, 18)[0]
        (self._headers,) = struct.unpack_from("<Q", content, 40)
        size, n, names = struct.unpack_from("<HHH", content, 58)
        if size != SECTION.size:
            raise SystemExit("lmlite: kernels.py does not understand this object file")
        if n == 0:  # more than fit
            n = SECTION.unpack_from(content, self._headers)[5]
        if names == 0xFFFF:
            names = SECTION.unpack_from(content, self._headers)[6]
        self._sections = [SECTION.unpack_from(content, self._headers + i * SECTION.size) for i in range(n)]
        self._names = names

    def section_names(self) -> list[str]:
        strings = self._sections[self._names][4]
        return [self._text(strings + section[0]).decode() for section in self._sections]

    def symbols(self) -> Iterator[Symbol]:
        for section in self._sections:
            if section[1] == SYMTAB:
                strings = self._sections[section[6]][4]
                for at in range(section[4], section[4] + section[5], SYMBOL.size):
                    name, info, _, where, _, _ = SYMBOL.unpack_from(self.content, at)
                    yield Symbol(self._text(strings + name), at, info >> 4, info & 15, where)

    def signatures(self) -> set[int]:
        """The places of the symbols by whose names the linker takes one of several groups of sections."""
        tables = self._sections
        return {tables[it[6]][4] + it[7] * SYMBOL.size for it in self._sections if it[1] == GROUP}

    def rename(self, names: dict[bytes, bytes]) -> None:
        """The new names go to a copy of their table at the end of the file."""
        signatures = self.signatures()
        tables = [section for section in self._sections if section[1] == SYMTAB]
        for table in tables:
            link = table[6]
            old = self._sections[link]
            strings = self.content[old[4] : old[4] + old[5]]
            for symbol in list(self.symbols()):
                is_seen = symbol.binding in (GLOBAL, WEAK, UNIQUE) or symbol.at in signatures
                if is_seen and symbol.name in names:
                    struct.pack_into("<I", self.content, symbol.at, len(strings))
                    strings += names[symbol.name] + b"\0"
            place = len(self.content)
            self.content += strings
            moved = (*old[:4], place, len(strings), *old[6:])
            self._sections[link] = moved
            SECTION.pack_into(self.content, self._headers + link * SECTION.size, *moved)

    def _text(self, at: int) -> bytes:
        return bytes(self.content[at : self.content.index(b"\0", at)])


def defined(elf: Elf) -> set[bytes]:
    signatures = elf.signatures()
    seen = (it for it in elf.symbols() if it.at in signatures or (it.section and it.binding in (GLOBAL, WEAK, UNIQUE)))
    return {it.name for it in seen if it.name}


def rename(name: str, folder: Path, paths: list[Path]) -> None:
    objects = [Elf(path.read_bytes()) for path in paths]
    for path, elf in zip(paths, objects):
        for section in elf.section_names():
            if section.startswith(RUN_AT_LOAD):
                raise SystemExit(f"lmlite: {path} has {section}: it would run on CPUs that it is not for")
    names = {symbol: symbol + b"_" + name.encode() for elf in objects for symbol in defined(elf)}
    folder.mkdir(parents=True, exist_ok=True)
    for i, elf in enumerate(objects):
        elf.rename(names)
        (folder / f"{name}-{i}.o").write_bytes(elf.content)


X86_64_ENTRY = """    "endbr64\\n movl lm_kernels_level(%rip), %r10d\\n leaq .Llm_{i}(%rip), %r11\\n"
    "jmpq *(%r11,%r10,8)\\n\""""
AARCH64_ENTRY = """    "hint #34\\n adrp x16, lm_kernels_level\\n ldr w17, [x16, :lo12:lm_kernels_level]\\n"
    "adrp x16, .Llm_{i}\\n add x16, x16, :lo12:.Llm_{i}\\n ldr x16, [x16, x17, lsl #3]\\n br x16\\n\""""
ENTRIES = {X86_64: X86_64_ENTRY, AARCH64: AARCH64_ENTRY}


def choose(target: Path, sets: list[str], folder: Path) -> None:
    functions: list[set[bytes]] = []
    machine = 0
    for name in sets:
        own: set[bytes] = set()
        for path in folder.glob(f"{name}-*.o"):
            elf = Elf(path.read_bytes())
            machine = elf.machine
            strong = (it for it in elf.symbols() if it.section and it.binding == GLOBAL and it.type == FUNCTION)
            own.update(it.name.removesuffix(b"_" + name.encode()) for it in strong)
        functions.append(own)
    if machine not in ENTRIES:
        raise SystemExit(f"lmlite: kernels.py has no code for machine {machine}")
    lines = ["/* Written by csrc/kernels.py. */"]
    for i, symbol in enumerate(sorted(set.intersection(*functions))):
        text = symbol.decode()
        table = ", ".join(f"{text}_{name}" for name in sets)
        lines += [
            "__asm__(",
            f'    ".section .data.rel.ro.lm_{i},\\"aw\\",%progbits\\n .balign 8\\n .Llm_{i}: .quad {table}\\n"',
            f'    ".section .text.lm_{i},\\"ax\\",%progbits\\n .balign 16\\n .globl {text}\\n .hidden {text}\\n"',
            f'    ".type {text}, %function\\n {text}:\\n"',
            ENTRIES[machine].replace("{i}", str(i)),
            f'    ".size {text}, .-{text}\\n .hidden lm_kernels_level\\n .text\\n");',
        ]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> None:
    match arguments:
        case ["rename", name, folder, *objects] if objects:
            rename(name, Path(folder), [Path(path) for path in objects])
        case ["choose", target, sets, folder]:
            choose(Path(target), sets.split(","), Path(folder))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])

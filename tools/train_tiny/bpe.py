"""A byte-level BPE of about a hundred lines, as GPT-2's: trained on word counts, applied by merge rank.

Three rules of ours make a tiny model's life easier, and need nothing special of a reader of the merges. Digits never
merge, so that numbers are read digit by digit. A space never merges with a capital, so that " Oslo" in a question and
"Oslo" inside JSON quotes are the same pieces. White space never merges with white space, so that a prompt that ends in
two line ends is cut like a text that goes on after them.
"""

import re
from collections import Counter
from functools import cache

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTROL = (END_OF_TEXT, TURN_START, TURN_END)  # never produced by tokenizing a user's text
TAGS = (
    "<think>", "</think>", "<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
)  # fmt: skip  # one token each, but ordinary text: visible in the output
SPECIAL = CONTROL + TAGS
RARE = 4  # a word in fewer texts than this teaches no merge: most of those are names that were made up once

# GPT-2's split into words, spelled without \p{L}: `[^\W\d_]` is a letter.
WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
SPECIALS = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")


def _byte_letters() -> dict[int, str]:
    """GPT-2's spelling of each byte as a printable letter; the space is "Ġ"."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


LETTERS = _byte_letters()
SPACE = LETTERS[0x20]


def spell(text: str) -> str:
    return "".join(LETTERS[byte] for byte in text.encode())


def _trainable_parts(word: str) -> list[str]:
    """What of a word merges may be learned from: none reaches across a cut."""
    if word[0] == " " and word[1:2].isupper():
        return [word[1:]]
    return [] if word.isspace() or word.strip().isdigit() else [word]


def _merge(pieces: list[str], left: str, right: str) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and merged[-1] == left and piece == right:
            merged[-1] = left + right
        else:
            merged.append(piece)
    return merged


def train(texts: list[str], vocab_size: int) -> list[tuple[str, str]]:
    """The merges, most frequent first; ties go to the pair that sorts first, so that a run repeats exactly."""
    counts: Counter[str] = Counter()
    for text in texts:
        words_of_text = {word for plain in SPECIALS.split(text)[::2] for word in WORDS.findall(plain)}
        counts.update(part for word in sorted(words_of_text) for part in _trainable_parts(word))
    words = [(list(spell(word)), count) for word, count in counts.items() if count >= RARE]
    merges: list[tuple[str, str]] = []
    while len(merges) < vocab_size - len(LETTERS) - len(SPECIAL):
        pairs: Counter[tuple[str, str]] = Counter()
        for pieces, count in words:
            for pair in zip(pieces, pieces[1:], strict=False):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = [
            (_merge(pieces, *best) if best[0] in pieces else pieces, count) for pieces, count in words
        ]
    return merges


class Bpe:
    """Text to token ids and back. Ids: the bytes, then the merges, then the special tokens."""

    def __init__(self, merges: list[tuple[str, str]]):
        self.merges = merges
        self.tokens = [*LETTERS.values(), *(left + right for left, right in merges), *SPECIAL]
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        self._rank = {pair: rank for rank, pair in enumerate(merges)}
        self._word = cache(self._encode_word)

    def _encode_word(self, word: str) -> tuple[int, ...]:
        pieces = list(spell(word))
        while len(pieces) > 1:
            ranks = [self._rank.get(pair, len(self._rank)) for pair in zip(pieces, pieces[1:], strict=False)]
            if min(ranks) == len(self._rank):
                break
            # One occurrence at a time, leftmost first: what readers of GGUF files do.
            at = ranks.index(min(ranks))
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        return tuple(self.ids[piece] for piece in pieces)

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered text; special tokens are recognised in it."""
        ids: list[int] = []
        for i, part in enumerate(SPECIALS.split(text)):
            if i % 2:
                ids.append(self.ids[part])
            else:
                for word in WORDS.findall(part):
                    ids.extend(self._word(word))
        return ids

    def decode(self, ids: list[int]) -> str:
        byte_of = {letter: byte for byte, letter in LETTERS.items()}
        text = b""
        for i in ids:
            token = self.tokens[i]
            text += token.encode() if token in SPECIAL else bytes(byte_of[letter] for letter in token)
        return text.decode(errors="replace")

"""Teaches lmlite-tiny to talk of pictures: trains a tower beside it, and it with the tower, and writes a checkpoint.

    pip install torch==2.13.0 numpy jinja2 gguf
    python teach.py --out vision.pt
    python write.py vision.pt ../../lmlite/models
    python quiz.py http://127.0.0.1:1234 lmlite-tiny-vision      # any server that serves the two files

Four parts. First, words for pictures are found: embeddings that, read in a picture's place, make the text model as it
is say the right colour and shape. Then the tower learns to write these words when it sees the picture. After that both
learn together, from conversations about pictures and from the text that the model learned from at first, so that it
forgets none of it: fast for a while, then, with new pictures and texts, ever more slowly. The same seed, steps, threads
and kind of machine give the same weights; each part but the first two may also go on from a checkpoint.
"""

import argparse
import dataclasses
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from pictures import COLOURS, SHAPES, Seen, album, any_seen
from talks import FIRST_KINDS, KINDS, PICTURE, talk
from torch import Tensor, nn
from torch.nn import functional as F
from tower import Sight, Tower

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "train_tiny"))
import bpe  # noqa: E402
from corpus import chat_template  # noqa: E402
from model import Model, Shape  # noqa: E402
from train import ALIGN, Weigher, batches, keep_freed_memory, tensors, texts  # noqa: E402

TINY = ROOT.parent / "lmlite" / "models" / "lmlite-tiny.gguf"
SEEN = -1  # stands for one of a picture's words among token ids
LOOK_BATCH = 64
WARM_UP = 0.05  # of all steps of a part; then the rate falls in a straight line to zero
FULL_FALL = 300  # steps of talking in which the rate would fall to zero, if it were not for the last part
SETTLED = 0.7  # of the rates of talking: with what the last part begins
EVERY = 20  # steps between two lines of progress


def text_model(path: Path) -> tuple[Model, bpe.Bpe]:
    """From the file, so that what is trained on is what the package has."""
    reader = gguf.GGUFReader(path)
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    model = Model(Shape())
    model.load_state_dict({
        tensor.name: torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        for tensor in reader.tensors
    })  # fmt: skip
    return model, bpe.Bpe([tuple(merge.split(" ")) for merge in merges])


class Words(nn.Module):
    """A picture's words by what is seen: what all pictures have, and what its colour and its shape add."""

    def __init__(self, tokens: int, width: int, scale: float):
        super().__init__()
        self.ground = nn.Parameter(torch.randn(tokens, width) * scale)
        self.colours = nn.Parameter(torch.randn(len(COLOURS), tokens, width) * scale / 3)
        self.shapes = nn.Parameter(torch.randn(len(SHAPES), tokens, width) * scale / 3)

    def forward(self, names: list[Seen]) -> Tensor:
        colours, shapes = numbered(names)
        return self.ground + self.colours[colours] + self.shapes[shapes]


def numbered(names: list[Seen]) -> tuple[Tensor, Tensor]:
    colours = [list(COLOURS).index(colour) for colour, _ in names]
    return torch.tensor(colours), torch.tensor([SHAPES.index(shape) for _, shape in names])


# ---- conversations as numbers


class Reader:
    """Conversations about pictures as padded ids, with what each token counts in the loss."""

    def __init__(self, tokenizer: bpe.Bpe, tokens: int, seed: int):
        self.tokenizer, self.tokens = tokenizer, tokens
        self.weigh, self.template, self.random = Weigher(tokenizer), chat_template(), random.Random(seed)

    def __call__(self, kinds: list[str], album: list[Seen]) -> tuple[Tensor, Tensor]:
        seen = iter(album)
        rows = [self._row(kind, seen) for kind in kinds]
        longest = -(-max(map(len, rows)) // ALIGN) * ALIGN + 1
        ids, weights = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.from_numpy(row)
            # Only what it is to write: it learns no questions by heart.
            weights[i, : len(row)] = torch.from_numpy((self.weigh(row) == 1).astype(np.float32))
        return ids, weights

    def draw(self, kinds: tuple[str, ...], n: int) -> tuple[list[str], int]:
        """Some kinds of talk, and how many pictures they need."""
        drawn = self.random.choices(kinds, k=n)
        return drawn, sum(kind.count("[") for kind in drawn)

    def _row(self, kind: str, album: Iterator[Seen]) -> np.ndarray:
        messages, variables = talk(self.random, kind, album)
        first, *others = self.template.render(messages=messages, **variables).split(PICTURE)
        ids = self.tokenizer.encode(first)
        for text in others:
            ids += [SEEN] * self.tokens + self.tokenizer.encode(text)
        return np.array(ids, np.int64)


def loss_of(model: Model, ids: Tensor, weights: Tensor, words: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean loss, and for each conversation whether all its answers are right at temperature 0."""
    with torch.autocast("cpu", torch.bfloat16):
        x = model.token_embd(ids[:, :-1].clamp(min=0))
        if words is not None:
            x = x.masked_scatter((ids[:, :-1] == SEEN)[..., None], words.float())
        wanted = weights[:, 1:] > 0
        logits = model.logits(model.read(x)[wanted])
    targets, counts = ids[:, 1:][wanted], weights[:, 1:][wanted]
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    right = torch.ones_like(wanted)
    right[wanted] = (logits.argmax(-1) == targets) | (counts < 1)
    return (losses * counts).sum() / counts.sum(), right.all(1)


# ---- the four parts


class Steps:
    """Goes through a part: sets each step's rate, learns from the loss that it is given, tells how it goes. The part is the
    first `n` steps of `of`, by which the rate would be zero."""

    def __init__(
        self, title: str, n: int, groups: list[tuple[list[nn.Parameter], float]], weight_decay: float = 0.0, of: int = 0
    ):
        self.title, self.n, self.of = title, n, of or n
        self.rates = [rate for _, rate in groups]
        self.weights = [weight for weights, _ in groups for weight in weights]
        self.optimizer = torch.optim.AdamW(
            [{"params": weights} for weights, _ in groups], betas=(0.9, 0.98), weight_decay=weight_decay
        )
        self.right: list[float] = []

    def __iter__(self) -> Iterator[int]:
        began = time.monotonic()
        for step in range(self.n):
            warm = max(1, int(self.of * WARM_UP))
            share = min((step + 1) / warm, (self.of - step) / (self.of - warm))
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * share
            self.optimizer.zero_grad()
            yield step
            nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimizer.step()
            if (step + 1) % EVERY == 0:
                right = f", right {sum(self.right) / len(self.right):.3f}" if self.right else ""
                print(f"{self.title} {step + 1}/{self.n}{right}, {time.monotonic() - began:.0f} s", flush=True)
                self.right.clear()


def find_words(model: Model, words: Words, read: Reader, r: np.random.Generator, options: argparse.Namespace) -> None:
    model.requires_grad_(False)
    steps = Steps("words", options.word_steps, [(list(words.parameters()), 2e-2)])
    for _ in steps:
        kinds, n = read.draw(FIRST_KINDS, options.batch)
        names = [any_seen(r) for _ in range(n)]
        loss, right = loss_of(model, *read(kinds, names), words(names))
        loss.backward()
        steps.right.append(right.float().mean().item())
    model.requires_grad_(True)


def look(words: Words, tower: Tower, pages: Tensor, names: list[Seen], r: np.random.Generator, n: int) -> None:
    with torch.no_grad():
        wanted = words(names)
    spread = (wanted - wanted.mean(0)).square().mean()
    colours, shapes = numbered(names)
    steps = Steps("look", n, [(list(tower.parameters()), 2e-3)], weight_decay=0.01)
    for _ in steps:
        chosen = torch.from_numpy(r.integers(0, len(names), LOOK_BATCH))
        written, guesses = tower(pages[chosen])
        guess = F.cross_entropy(guesses[:, : len(COLOURS)], colours[chosen])
        guess = guess + F.cross_entropy(guesses[:, len(COLOURS) :], shapes[chosen])
        (guess + (written - wanted[chosen]).square().mean() / spread).backward()
        right = guesses[:, : len(COLOURS)].argmax(1) == colours[chosen]
        right &= guesses[:, len(COLOURS) :].argmax(1) == shapes[chosen]
        steps.right.append(right.float().mean().item())


def talk_of_them(
    model: Model, tower: Tower, tokenizer: bpe.Bpe, pages: Tensor, names: list[Seen], seed: int, batch: int, steps: Steps
) -> None:
    read, r = Reader(tokenizer, Sight().tokens, seed), np.random.default_rng([seed - 1, 1])
    replayed = batches(texts(seed, tokenizer), random.Random(seed))
    for _, replay in zip(steps, replayed, strict=False):
        kinds, n = read.draw(KINDS, batch)
        chosen = r.integers(0, len(names), n)
        words, _ = tower(pages[torch.from_numpy(chosen)])
        loss, right = loss_of(model, *read(kinds, [names[i] for i in chosen]), words)
        loss.backward()
        loss_of(model, *tensors(replay[::2], read.weigh), None)[0].backward()
        steps.right.append(right.float().mean().item())


@torch.inference_mode()
def check(model: Model, tower: Tower, read: Reader, seed: int) -> dict[str, float]:
    """The share of conversations with right answers only, of each kind, about pictures never seen."""
    r = np.random.default_rng(seed)
    shares = {}
    for kind in dict.fromkeys(KINDS):
        pages, names = album(r, 100 * max(1, kind.count("[")))
        words = tower(pages)[0] if "[" in kind else None
        shares[kind] = loss_of(model, *read([kind] * 100, names), words)[1].float().mean().item()
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeing", type=Path, help="go on from OUT.seeing.pt, which is written after the first two parts")
    parser.add_argument("--talking", type=Path, help="go on from OUT.talking.pt, which is written before the last part")
    parser.add_argument("--word-steps", type=int, default=400)
    parser.add_argument("--look-steps", type=int, default=4000)
    parser.add_argument("--talk-steps", type=int, default=100)
    parser.add_argument("--settle-steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32, help="conversations at a time")
    parser.add_argument("--album", type=int, default=10_000, help="pictures to learn from, and a fifth as many at last")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    keep_freed_memory()
    seed, r = options.seed, np.random.default_rng(options.seed)
    model, tokenizer = text_model(TINY)
    width, scale, tokens = Shape().width, model.token_embd.weight.std().item(), Sight().tokens
    tower = Tower(Sight(), width, scale)
    if not options.talking:
        pages, names = album(r, options.album)
        if options.seeing:
            tower.load_state_dict(torch.load(options.seeing)["tower"])
        else:
            words = Words(tokens, width, scale)
            find_words(model, words, Reader(tokenizer, tokens, seed), r, options)
            look(words, tower, pages, names, r, options.look_steps)
            save(options.out.with_suffix(".seeing.pt"), model, tower, tokenizer, {})
        steps = Steps("talk", options.talk_steps, talked(model, tower, 1), of=FULL_FALL)
        talk_of_them(model, tower, tokenizer, pages, names, seed + 1, options.batch, steps)
        save(options.out.with_suffix(".talking.pt"), model, tower, tokenizer, {})
    else:
        checkpoint = torch.load(options.talking)
        model.load_state_dict(checkpoint["weights"])
        tower.load_state_dict(checkpoint["tower"])
    pages, names = album(np.random.default_rng([seed, 2]), options.album // 5)
    steps = Steps("settle", options.settle_steps, talked(model, tower, SETTLED))
    talk_of_them(model, tower, tokenizer, pages, names, seed + 2, options.batch, steps)
    save(options.out, model, tower, tokenizer, {})
    shares = check(model, tower, Reader(tokenizer, tokens, seed + 3), seed + 1000)
    print({kind: round(share, 3) for kind, share in shares.items()})


def talked(model: Model, tower: Tower, share: float) -> list[tuple[list[nn.Parameter], float]]:
    """What learns while it talks, and how fast."""
    seeing = [weight for name, weight in tower.named_parameters() if not name.startswith("guess")]
    return [(list(model.parameters()), 1e-3 * share), (seeing, 5e-4 * share)]


def save(path: Path, model: Model, tower: Tower, tokenizer: bpe.Bpe, facts: dict[str, Any]) -> None:
    checkpoint = {
        "shape": dataclasses.asdict(Shape()), "sight": dataclasses.asdict(Sight()), "merges": tokenizer.merges,
        "weights": model.state_dict(), "tower": tower.state_dict(),
        "facts": facts | {"parameters": sum(weight.numel() for weight in model.parameters())},
    }  # fmt: skip
    torch.save(checkpoint, path)


if __name__ == "__main__":
    main()

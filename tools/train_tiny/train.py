"""Trains lmlite-tiny from nothing and writes a checkpoint; takes about half an hour on two cores.

    pip install torch==2.13.0 numpy jinja2 gguf
    python train.py --out tiny.pt
    python export.py tiny.pt ../../lmlite/models/lmlite-tiny.gguf
    python measure.py http://127.0.0.1:1234      # any server that serves the file

The same seed, steps, threads and kind of machine give the same weights.
"""

import argparse
import ctypes
import dataclasses
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import bpe
import numpy as np
import torch
from corpus import chat_template, document
from model import Model, Shape
from torch import Tensor
from torch.nn import functional as F

BPE_TEXTS = 20_000  # enough that the rarest merge was seen often
BATCH_TOKENS = 4096
POOL_BATCHES = 128  # batches are cut from pools of this many, sorted by length, so that little is padding
ALIGN = 32  # matrix kernels are slow at odd lengths
LONGEST = 1536  # tokens; a longer text is cut
PROMPT_WEIGHT = 0.1  # of the loss on what the model will read, against 1 on what it will write
HIDDEN_RATE, OTHER_RATE = 0.02, 0.003
WARM_UP = 0.03  # of all steps; then the rate falls in a straight line to zero


def texts(seed: int, tokenizer: bpe.Bpe) -> Iterator[np.ndarray]:
    """Token arrays of generated texts, without end."""
    r, template = random.Random(seed), chat_template()
    while True:
        yield np.array(tokenizer.encode(document(r, template))[:LONGEST], np.int16)


class Weigher:
    """Says how much each token counts in the loss."""

    def __init__(self, tokenizer: bpe.Bpe):
        self.start, self.end = tokenizer.ids[bpe.TURN_START], tokenizer.ids[bpe.TURN_END]
        self.header = tokenizer.encode(f"{bpe.TURN_START}assistant\n")
        # The template writes this, never the model: see `enable_thinking` there.
        self.empty_thought = tokenizer.encode("<think>\n\n</think>\n\n")

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        tokens = ids.tolist()
        if self.start not in tokens:
            return np.ones(len(tokens), np.float32)
        weights = np.full(len(tokens), PROMPT_WEIGHT, np.float32)
        size = len(self.header)
        for at in range(len(tokens) - size):
            if tokens[at] != self.start or tokens[at : at + size] != self.header:
                continue
            first = at + size
            if tokens[first : first + len(self.empty_thought)] == self.empty_thought:
                first += len(self.empty_thought)
            last = tokens.index(self.end, first) if self.end in tokens[first:] else len(tokens) - 1
            weights[first : last + 1] = 1
        return weights


def batches(source: Iterator[np.ndarray], r: random.Random) -> Iterator[list[np.ndarray]]:
    """Lists of texts of like length, about BATCH_TOKENS in each, in random order."""
    pool: list[np.ndarray] = []
    tokens = 0
    for text in source:
        pool.append(text)
        tokens += len(text)
        if tokens < BATCH_TOKENS * POOL_BATCHES:
            continue
        pool.sort(key=len)
        cut: list[list[np.ndarray]] = [[]]
        for text in pool:
            if cut[-1] and (len(cut[-1]) + 1) * len(text) > BATCH_TOKENS:
                cut.append([])
            cut[-1].append(text)
        r.shuffle(cut)
        yield from cut
        pool, tokens = [], 0


def tensors(batch: list[np.ndarray], weigh: Weigher) -> tuple[Tensor, Tensor]:
    """[texts, longest] ids and loss weights, padded at the end with weight 0."""
    longest = -(-max(map(len, batch)) // ALIGN) * ALIGN + 1  # the last id is only ever predicted
    ids = np.zeros((len(batch), longest), np.int64)
    weights = np.zeros((len(batch), longest), np.float32)
    for row, text in enumerate(batch):
        ids[row, : len(text)] = text
        weights[row, : len(text)] = weigh(text)
    return torch.from_numpy(ids), torch.from_numpy(weights)


def loss_of(model: Model, ids: Tensor, weights: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(ids[:, :-1])
        logits = model.logits(hidden)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()


def optimizers(model: Model) -> list[torch.optim.Optimizer]:
    hidden = [weight for weight in model.blk.parameters() if weight.ndim == 2]
    other = [weight for weight in model.parameters() if all(weight is not matrix for matrix in hidden)]
    return [
        torch.optim.Muon(hidden, lr=HIDDEN_RATE, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(other, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(shape: Shape, tokenizer: bpe.Bpe, steps: int, seed: int) -> tuple[Model, dict[str, float]]:
    torch.manual_seed(seed)
    model = Model(shape)
    weigh = Weigher(tokenizer)
    steppers = optimizers(model)
    warm = max(1, int(steps * WARM_UP))
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            stepper, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm))
        )
        for stepper in steppers
    ]
    began, seen, n_texts, mean = time.monotonic(), 0, 0, 0.0
    source = batches(texts(seed, tokenizer), random.Random(seed))
    for step, batch in zip(range(steps), source, strict=False):
        loss = loss_of(model, *tensors(batch, weigh))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper, schedule in zip(steppers, schedules, strict=True):
            stepper.step()
            schedule.step()
            stepper.zero_grad()
        seen += sum(map(len, batch))
        n_texts += len(batch)
        mean = loss.item() if not step else 0.98 * mean + 0.02 * loss.item()
        if step % 20 == 0:
            print(f"step {step}/{steps} loss {mean:.4f} {seen / (time.monotonic() - began):.0f} tokens/s", flush=True)
    return model, {"texts": n_texts, "tokens": seen, "seconds": round(time.monotonic() - began), "loss": round(mean, 4)}


def keep_freed_memory() -> None:
    """Tells glibc to keep what tensors leave behind; else half of the time goes into page faults."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # as in malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)
        mallopt(arena_max, 1)


def learn_merges(shape: Shape, seed: int) -> list[tuple[str, str]]:
    r, template = random.Random(f"{seed}/bpe"), chat_template()
    return bpe.train([document(r, template) for _ in range(BPE_TEXTS)], shape.vocab)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    shape = Shape()
    tokenizer = bpe.Bpe(learn_merges(shape, options.seed))
    model, facts = train(shape, tokenizer, options.steps, options.seed)
    facts |= {"steps": options.steps, "seed": options.seed, "parameters": sum(w.numel() for w in model.parameters())}
    print(facts)
    checkpoint = {
        "shape": dataclasses.asdict(shape),
        "merges": tokenizer.merges,
        "weights": model.state_dict(),
        "facts": facts,
    }
    torch.save(checkpoint, options.out)


if __name__ == "__main__":
    main()

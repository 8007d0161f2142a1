"""Checks that llama-server reads the file as it was trained: the same tokens, and the same greedy continuation.

`python compare.py tiny.pt http://127.0.0.1:8080`, with llama-server on the file that `export.py --exact` wrote (the
packed file may differ where two tokens are nearly as likely). Ends with status 1 if anything differs.
"""

import json
import random
import sys
import urllib.request
from typing import Any

import bpe
import torch
from corpus import chat_template, document
from model import Model, Shape

TEXTS = 300  # for the tokenizer
PROMPTS = 30  # for the weights, cut in the middle of a text
CONTINUED = 40  # tokens of each

ODD_TEXTS = (
    "", " ", "\n\n\n", "  two  spaces \n \n and\ttabs\r\n", "it's we'll I'M they've 's ' '' '''x",
    "x²+½ Ⅷ ١٢٣ 12345 1,000.50", "Zażółć gęślą jaźń", "你好，世界", "😀👍🏽 e\u0301\u200b", "snake_case __init__ a_b",
    "<think>x</think><|not special|>",
)  # fmt: skip


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


@torch.inference_mode()
def continued(model: Model, ids: list[int], stops: set[int]) -> list[int]:
    """The greedy continuation, up to and without a token of `stops`."""
    written: list[int] = []
    while len(written) < CONTINUED:
        hidden = model(torch.tensor([ids + written]))[:, -1]
        following = int(model.logits(hidden).argmax())
        if following in stops:
            break
        written.append(following)
    return written


def main(path: str, url: str) -> int:
    checkpoint = torch.load(path)
    tokenizer = bpe.Bpe([tuple(pair) for pair in checkpoint["merges"]])
    model = Model(Shape(**checkpoint["shape"]))
    model.load_state_dict(checkpoint["weights"])
    r, template = random.Random("compare"), chat_template()
    texts = [document(r, template) for _ in range(TEXTS)]

    differing = 0
    for text in [*texts, *ODD_TEXTS]:
        theirs = post(f"{url}/tokenize", {"content": text, "parse_special": True})["tokens"]
        if theirs != tokenizer.encode(text):
            differing += 1
            print("tokens differ:", repr(text))

    stops = {tokenizer.ids[bpe.TURN_END], tokenizer.ids[bpe.END_OF_TEXT]}
    for text in texts[:PROMPTS]:
        prompt = tokenizer.encode(text)
        prompt = prompt[: len(prompt) // 2 + 1]
        body = {"prompt": prompt, "temperature": 0, "n_predict": CONTINUED, "return_tokens": True}
        theirs = post(f"{url}/completion", body)["tokens"]
        ours = continued(model, prompt, stops)
        if [token for token in theirs if token not in stops] != ours:
            differing += 1
            print("continuations differ:", repr(tokenizer.decode(ours)), repr(tokenizer.decode(theirs)))
    print(f"{differing} of {len(texts) + len(ODD_TEXTS)} tokenizations and {PROMPTS} continuations differ")
    return differing > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2].rstrip("/")))

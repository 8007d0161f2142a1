"""A program with a model inside, and a server for its other parts: `python examples/embed.py MODEL.gguf`."""

import sys
import tempfile
import threading
import urllib.request

import lmlite


def summarize(model, text):
    """One of the program's own functions: streams an answer and stops it once it is long enough."""
    answer = ""
    for piece in model.chat_stream([{"role": "user", "content": f"Summarize in a sentence: {text}"}], temperature=0.0):
        answer += piece
        if len(answer) > 200:
            break  # which frees the model for others at once
    return answer


def main(path):
    # In a thread of this process. isolation="process" keeps a crash of the engine away from the program.
    with lmlite.load(path, context_length=2048, parallel=2) as model:
        threads = [threading.Thread(target=lambda: print(summarize(model, "The sky is blue."))) for _ in range(2)]
        for thread in threads:  # any number of threads may use a model; they share its steps
            thread.start()
        for thread in threads:
            thread.join()
    # The same over HTTP, on a port that is free, for whatever speaks OpenAI's API.
    with tempfile.TemporaryDirectory() as home, lmlite.Server(port=0, home=home, models=[path]) as server:
        print(urllib.request.urlopen(f"{server.url}/v1/models").read().decode())


if __name__ == "__main__":
    main(sys.argv[1])

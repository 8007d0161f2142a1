"""`lmlite get`: downloads a model from the hub, through the server of this home or, where none runs, in this process.

A name with a slash or a URL is the hub's; any other is searched for there. What was received is never lost: the same
command goes on from it. Of the server's downloads Ctrl-C only leaves, unless the user at the terminal wants them stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from ..errors import LmError
from .client import Client, NotRunning, add_flags
from .loading import resolved
from .models import Entry
from .terminal import Bar, choose, confirm, decimal_size, duration, escaped, is_interactive, put_json, say

if TYPE_CHECKING:
    from ..download import Progress, Record
    from ..hub.http import Client as HubClient

POLL_S: Final = 0.25
INTERRUPTED: Final = 130
SHOWN: Final = 20
"""Matches to choose from."""

T = TypeVar("T")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "get",
        help="download a model",
        description="Downloads a GGUF model from Hugging Face, or the hub that HF_ENDPOINT names. The same command again "
        "goes on with a download that was interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("name", help="owner/name, owner/name@quantization, a URL of the hub, or words to search for")
    format = parser.add_mutually_exclusive_group()
    format.add_argument("--gguf", action="store_true", help="only GGUF models; there are no others here")
    format.add_argument("--mlx", action="store_true", help=argparse.SUPPRESS)  # LM Studio's: refused by name
    parser.add_argument("--select", action="store_true", help="choose the quantization from those that there are")
    parser.add_argument("-y", "--yes", action="store_true", help="ask nothing: of several matches, take the first")
    parser.add_argument("--json", action="store_true", help="tell the result as JSON")
    add_flags(parser)
    parser.set_defaults(run=get_model)


def get_model(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if arguments.mlx:
        raise LmError("MLX models cannot be used here, only GGUF.")
    source = source_of(arguments, environ)
    try:
        if "/" not in arguments.name and not arguments.select and source.has(arguments.name):
            return tell_present(arguments, arguments.name)
        name = named_on_hub(arguments, environ)
        job = source.start(name)
        if job["status"] == "already_downloaded":
            return tell_present(arguments, name, job)
        return follow(source, job, name, arguments)
    finally:
        source.close()


def tell_present(arguments: argparse.Namespace, name: str, answer: Entry | None = None) -> int:
    say(arguments, f"{escaped(name)} is already downloaded.")
    if arguments.json:
        put_json(answer or {"status": "already_downloaded"})
    return 0


# ---- following a job -------------------------------------------------------------------------------------------------


def follow(source: Source, job: Entry, name: str, arguments: argparse.Namespace) -> int:
    total, id = job["total_size_bytes"], job["job_id"]
    say(arguments, f"Downloading {escaped(name)} ({decimal_size(total)})")
    try:
        with Bar(total, "") as bar:
            while job["status"] == "downloading":
                bar.update(job.get("downloaded_bytes", 0), pace_words(job))
                pause(POLL_S)
                job = source.progress(id)
    except KeyboardInterrupt:
        return leave(source, id, arguments)
    if arguments.json:
        put_json(job)
    if job["status"] == "completed":
        say(arguments, "Download completed.")
        return 0
    if job["status"] == "paused":
        raise LmError("The download was paused. The same command goes on with it.")
    raise LmError(f"The download failed: {escaped(job.get('error_message', 'the server does not say why'))}")


def pause(seconds: float) -> None:
    time.sleep(seconds)


def pace_words(job: Entry) -> str:
    """`1.20 GB of 4.37 GB, 52.43 MB/s, 59s left`, or what it waits for."""
    done, total = job.get("downloaded_bytes", 0), job["total_size_bytes"]
    words = f"{decimal_size(done)} of {decimal_size(total)}"
    if "waiting_because" in job:
        return f"{words}, waiting: {escaped(job['waiting_because'])}"
    if not (rate := job.get("bytes_per_second", 0)):
        return words
    return f"{words}, {decimal_size(rate)}/s, {duration((total - done) / rate)} left"


def leave(source: Source, id: str, arguments: argparse.Namespace) -> int:
    """After Ctrl-C: a server goes on unless it is told not to; a second Ctrl-C says so, too."""
    goes_on = source.outlives_command
    say(arguments, "")  # what the terminal echoed stands on a line of its own
    if goes_on and is_interactive() and not arguments.yes:
        try:
            goes_on = confirm("Continue to download in the background?")
        except KeyboardInterrupt:
            goes_on = False
        if not goes_on:
            source.pause(id)
    if goes_on:
        say(arguments, "The download goes on in the background. To see how far it is, run the same command.")
    else:
        say(arguments, "The download is stopped. The same command goes on from what was received.")
    return INTERRUPTED


# ---- where it is downloaded ------------------------------------------------------------------------------------------


class Source(Protocol):
    """Jobs are told as `/lmlite/downloads/{job_id}` tells them."""

    outlives_command: bool

    def has(self, key: str) -> bool: ...

    def start(self, name: str) -> Entry: ...

    def progress(self, id: str) -> Entry: ...

    def pause(self, id: str) -> None: ...

    def close(self) -> None: ...


def source_of(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Source:
    try:
        client = Client.find(environ, arguments.host, arguments.port)
        client.get("/health")
        return OfServer(client)
    except NotRunning:
        if arguments.host is not None or arguments.port is not None:
            raise
    return OfThisProcess(environ)


class OfServer:
    outlives_command = True

    def __init__(self, client: Client):
        self._client = client

    def has(self, key: str) -> bool:
        return resolved(self._client, key) is not None

    def start(self, name: str) -> Entry:
        job: Entry = self._client.post("/api/v1/models/download", {"model": name})
        return job

    def progress(self, id: str) -> Entry:
        job: Entry = self._client.get(f"/lmlite/downloads/{id}")
        return job

    def pause(self, id: str) -> None:
        self._client.post(f"/lmlite/downloads/pause/{id}", {})

    def close(self) -> None:
        pass


class Forgetful:
    """Jobs of one command: those of a server are its own business, and the disk tells what was received."""

    def all(self) -> list[Record]:
        return []

    def save(self, record: Record) -> None:
        pass

    def forget(self, id: str) -> None:
        pass


class OfThisProcess:
    """The server's own downloads, in a loop of their own in a thread."""

    outlives_command = False

    def __init__(self, environ: Mapping[str, str]):
        from ..config import gather
        from ..hub.jobs import Downloads
        from ..server import LoopThread

        self._config = gather({}, environ)
        client = hub_client(environ)
        self._thread = LoopThread("lmlite-get")
        self._jobs = self._thread.call(self._open(Downloads, client))

    async def _open(self, downloads: Callable[..., T], client: HubClient) -> T:
        """In the loop that it will live in."""
        return downloads(client, self._config.home / "models", Forgetful(), stall_s=self._config.download_stall)

    def has(self, key: str) -> bool:
        from ..app.disk import open_catalog

        card = open_catalog(self._config).resolve(key)
        return card is not None and card.problem is None

    def start(self, name: str) -> Entry:
        from ..api.lmstudio.download import started
        from ..hub import names

        progress = self._call(self._jobs.start(names.parse(name, endpoint=self._jobs.endpoint)))
        job: Entry = json.loads(started(progress))
        return job

    def progress(self, id: str) -> Entry:
        from ..api.lmstudio.download import ours

        progress: Progress = self._call(self._jobs.get(id))
        job: Entry = json.loads(ours(progress, time.time()))
        return job

    def pause(self, id: str) -> None:
        self._call(self._jobs.pause(id))

    def close(self) -> None:
        try:
            self._call(self._jobs.close())
        finally:
            self._thread.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return self._thread.call(work)


# ---- which model -----------------------------------------------------------------------------------------------------


def named_on_hub(arguments: argparse.Namespace, environ: Mapping[str, str]) -> str:
    """What the hub calls the model that was named, searched for or selected. Raises `LmError` where nobody can be asked."""
    name: str = arguments.name
    if "/" not in name:
        term, at, quant = name.partition("@")
        name = found_on_hub(term, arguments, environ) + at + quant
    if arguments.select:
        name = selected(name, environ)
    return name


def found_on_hub(term: str, arguments: argparse.Namespace, environ: Mapping[str, str]) -> str:
    from ..hub.http import Interrupt
    from ..hub.search import search

    found = search(hub_client(environ), term, Interrupt())
    if not found:
        raise LmError(f'The hub has no GGUF model that matches "{escaped(term)}".')
    if len(found) == 1 or arguments.yes:
        return found[0].repo
    if not is_interactive():
        listed = ", ".join(repo.repo for repo in found[:8])
        raise LmError(f'"{escaped(term)}" matches several models: {listed}. Name one of them, or take the first with -y')
    index = choose("Which model?", [f"{repo.repo}  {repo.downloads} downloads" for repo in found[:SHOWN]])
    if index is None:
        raise LmError("No model was chosen.")
    return found[index].repo


def selected(name: str, environ: Mapping[str, str]) -> str:
    """The name with the quantization that the user takes."""
    from ..hub import choice, listing, names
    from ..hub.http import Interrupt

    if not is_interactive():
        raise LmError("--select asks at a terminal; name a quantization as owner/name@quantization instead.")
    client = hub_client(environ)
    wanted = names.parse(name, endpoint=client.site.endpoint)
    variants = choice.offered(listing.fetch(client, wanted, Interrupt()))
    if not variants:
        raise LmError(f"{wanted.repo} has no GGUF files.")
    index = choose("Which quantization?", [f"{variant.quant.upper()}  {decimal_size(variant.size)}" for variant in variants])
    if index is None:
        raise LmError("No quantization was chosen.")
    return f"{wanted.repo}@{variants[index].quant}"


def hub_client(environ: Mapping[str, str]) -> HubClient:
    from ..hub.http import Client
    from ..hub.site import Site

    return Client(Site.of(environ))

"""`GET /metrics`: what the server has counted, and what is known of its engines at this moment.

A scrape loads nothing, keeps nothing from being unloaded, and waits for no engine for long: of one that is too busy to say
how it is, the last word counts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..metrics import CONTENT_TYPE, Counter, Family, Gauge, expose
from ..wire.connection import Request, Response
from .state import State

if TYPE_CHECKING:
    from ..card import Instance
    from ..core.engine.payloads import Report


async def show(app: State, request: Request, response: Response, _: str) -> None:
    reports = await app.reports.fresh(app.models.engines())
    kept = disk_families(reports) if app.config.prompt_cache else ()
    engines = (loading_family(app), *instance_families(reports), *kept, *gateway_families(app, reports))
    counted = (*app.metrics.families(), *app.models.counted())
    text = expose((*counted, *engines, *app.downloads.families(), *server_families(app)))
    response.whole(200, text.encode(), content_type=CONTENT_TYPE)


def loading_family(app: State) -> Gauge:
    waiting = Gauge("lmlite_requests_waiting_for_load", "Requests that wait for a model to be loaded.", ("model",))
    for model, count in app.models.waiting().items():
        waiting.set(count, model)
    return waiting


def instance_families(reports: list[tuple[Instance, Report | None]]) -> Iterator[Family]:
    """What is loaded, and how busy it is; `model` is the catalogue's name, `identifier` the instance's."""
    names = ("model", "identifier")
    loaded = Gauge("lmlite_loaded_instances", "Loaded models.")
    running = Gauge("lmlite_requests_running", "Requests that an engine works on.", names)
    waiting = Gauge("lmlite_requests_waiting", "Requests that wait for a place in an engine.", names)
    parallel = Gauge("lmlite_parallel", "Requests that an engine works on at once.", names)
    cells = Gauge("lmlite_cache_cells", "Tokens that the KV cache has room for.", names)
    used = Gauge("lmlite_cache_cells_used", "Tokens in the KV cache, those kept for later requests included.", names)
    encoded = Counter("lmlite_media_encoded_total", "Pictures and sounds that were encoded since the load.", names)
    reused = Counter("lmlite_media_reused_total", "Those that were known already.", names)
    for instance, report in reports:
        values = (instance.card.id, instance.id)
        parallel.set(instance.parallel, *values)
        cells.set(instance.kv_cells, *values)
        if report is not None:
            running.set(report.running, *values)
            waiting.set(report.queued, *values)
            used.set(report.cells_used, *values)
            if instance.vision or instance.audio:
                encoded.add(*values, n=report.media_encoded)
                reused.add(*values, n=report.media_reused)
    yield from (loaded.set(len(reports)), running, waiting, parallel, cells, used, encoded, reused)


def disk_families(reports: list[tuple[Instance, Report | None]]) -> Iterator[Family]:
    """What the prompt cache on the disk was good for, since each model was loaded."""
    names = ("model", "identifier")
    hits = Counter("lmlite_prompt_cache_disk_hits_total", "Prompts of which something was found on the disk.", names)
    tokens = Counter("lmlite_prompt_cache_disk_tokens_total", "Tokens of theirs that were found there.", names)
    read = Counter("lmlite_prompt_cache_disk_read_bytes_total", "Bytes read for them.", names)
    written = Counter("lmlite_prompt_cache_disk_written_bytes_total", "Bytes written for others to come.", names)
    damaged = Counter("lmlite_prompt_cache_disk_damaged_total", "Files that were damaged, and are removed.", names)
    held = Gauge("lmlite_prompt_cache_disk_bytes", "Bytes in the folder, which all models share.")
    for instance, report in reports:
        if report is not None:
            values = (instance.card.id, instance.id)
            hits.add(*values, n=report.disk_hits)
            tokens.add(*values, n=report.disk_tokens)
            read.add(*values, n=report.disk_read_bytes)
            written.add(*values, n=report.disk_written_bytes)
            damaged.add(*values, n=report.disk_damaged)
    held.set(max((report.disk_bytes for _, report in reports if report is not None), default=0))
    yield from (hits, tokens, read, written, damaged, held)


def gateway_families(app: State, reports: list[tuple[Instance, Report | None]]) -> Iterator[Family]:
    """What gateways read to choose among several nodes, under the names that they look for. How full the cache is says
    nothing here: it keeps what was asked before until there is need of room."""
    running: dict[str, float] = {}
    waiting: dict[str, float] = {model: count for model, count in app.models.waiting().items()}
    for instance, report in reports:
        if report is not None:
            running[instance.card.id] = running.get(instance.card.id, 0) + report.running
            waiting[instance.card.id] = waiting.get(instance.card.id, 0) + report.queued
    for name, counts, help in (
        ("vllm:num_requests_running", running, "Requests that engines of the model work on."),
        ("vllm:num_requests_waiting", waiting, "Requests that wait for it."),
    ):
        gauge = Gauge(name, help, ("model_name",))
        for model, count in counts.items():
            gauge.set(count, model)
        yield gauge


def server_families(app: State) -> Iterator[Family]:
    yield Gauge("lmlite_queue_limit", "Requests that may wait for a model; those beyond get 429.").set(app.config.max_queue)
    yield Gauge("lmlite_connections_open", "Open connections, that of this scrape included.").set(app.n_connections)
    yield Gauge("process_start_time_seconds", "When the server started, in Unix seconds.").set(app.started)
    yield Gauge("lmlite_uptime_seconds", "Since the server started.").set(round(app.uptime_s(), 3))
    if (resident := resident_bytes()) is not None:
        yield Gauge("process_resident_memory_bytes", "Resident memory of the server, without its engines.").set(resident)


def resident_bytes() -> int | None:
    """None where the system does not tell it without a library."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None

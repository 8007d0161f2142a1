"""`GET /lmlite/log`: the log as server-sent events."""

from __future__ import annotations

from ..errors import InvalidRequest
from ..wire import sse
from ..wire.connection import Request, Response
from .logs import KEEP_ALIVE_S, PREDICTIONS, Source
from .state import State


async def stream(app: State, request: Request, response: Response, _: str) -> None:
    """Server-sent events until the client leaves or the server stops; each is one line as JSON."""
    source, types, stats = parse_query(request.query)
    if request.method == "HEAD":
        response.whole(200, b"", content_type="text/event-stream")
        return
    with app.logs.listen(source, types, stats) as listener:
        response.start(200, sse.HEADERS, sse.KEEP_ALIVE)
        response.write(sse.KEEP_ALIVE)  # the listener is there: what is asked from now on is heard
        while not listener.closed:
            lines = await listener.take(KEEP_ALIVE_S)
            response.write(b"".join([sse.frame(None, line) for line in lines]) or sse.KEEP_ALIVE)
            await response.drain()
    response.finish()


def parse_query(query: str) -> tuple[Source, frozenset[str], bool]:
    """`source=model|server|runtime`, `filter=input,output` (types of predictions), `stats=1`."""
    from urllib.parse import parse_qsl

    given = dict(parse_qsl(query, keep_blank_values=True))
    source: Source
    match given.get("source", "model"):
        case "model" | "server" | "runtime" as source:
            pass
        case _:
            raise InvalidRequest("'source' must be one of model, server, runtime", "source")
    words = [word for word in given.get("filter", "").split(",") if word]
    if not all(word in PREDICTIONS for word in words):
        raise InvalidRequest("'filter' must be input, output, or both with a comma between them", "filter")
    if words and source != "model":
        raise InvalidRequest("'filter' is for the source model", "filter")
    stats = given.get("stats", "0")
    if stats not in ("0", "1", "false", "true"):
        raise InvalidRequest("'stats' must be 0 or 1", "stats")
    return source, frozenset(PREDICTIONS[word] for word in words or PREDICTIONS), stats in ("1", "true")

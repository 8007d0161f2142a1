"""Pictures and sound that requests name by URL: fetched where the operator allows it, from public addresses only.

As with servers of tools that requests name: a host is resolved once, redirects are not followed, size and time have bounds.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from ..errors import InvalidRequest, UnsupportedField
from ..messages import MediaPart
from ..request import Chat
from ..turn import Turn
from .state import State

if TYPE_CHECKING:
    from ..mcp.http import Answer, Web

LINKS_MAX: Final = 16
"""Of one request: each is a connection."""
BYTES_MAX: Final = 16 << 20
"""Of one file: what a camera makes has less."""
FETCH_S: Final = 20.0
"""For all of one request."""
ACCEPT: Final = "image/png, image/jpeg, image/gif, image/webp, image/bmp, audio/wav, audio/mpeg, audio/flac"


async def fetch(app: State, turn: Turn) -> None:
    """Fills the media of the turn that lie elsewhere. Raises `InvalidRequest` that names the place of one that cannot be."""
    chats = [prompt for prompt in turn.prompts() if isinstance(prompt, Chat)]
    links = [part for chat in chats for part in chat.media if part.url and not part.data]
    if not links:
        return
    first = links[0]
    if not app.config.fetch_media:
        why = "names what lies elsewhere, which this server does not fetch (--fetch-media): send a data URL"
        raise UnsupportedField(first.where, why)
    if len(links) > LINKS_MAX:
        raise InvalidRequest(f"one request may name {LINKS_MAX} pictures and sounds by URL", links[LINKS_MAX].where)
    from ..mcp.http import Web

    web = Web()
    try:
        await asyncio.wait_for(together(web, links), FETCH_S)
    except asyncio.TimeoutError:
        late = next((part for part in links if not part.data), first)
        raise InvalidRequest(f"'{late.where}' cannot be fetched: it takes more than {FETCH_S:g} s", late.where) from None


async def together(web: Web, links: list[MediaPart]) -> None:
    """The first failure ends the others."""
    tasks = [asyncio.ensure_future(fill(web, part)) for part in links]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def fill(web: Web, part: MediaPart) -> None:
    from ..mcp.http import Endpoint
    from ..mcp.message import Fault

    try:
        endpoint = await Endpoint.find(part.url, public_only=True)
        async with web.ask(endpoint, "GET", {"Accept": ACCEPT}) as answer:
            part.fill(await read(answer))
    except Fault as fault:
        raise InvalidRequest(f"'{part.where}' cannot be fetched: {fault}", part.where) from None


async def read(answer: Answer) -> bytes:
    from ..mcp.message import Fault

    if answer.status != 200:
        raise Fault(f"the server answers with status {answer.status}")
    pieces = []
    n = 0
    async for piece in answer.body:
        n += len(piece)
        if n > BYTES_MAX:
            raise Fault(f"it is larger than {BYTES_MAX >> 20} MiB")
        pieces.append(piece)
    if not n:
        raise Fault("it is empty")
    return b"".join(pieces)

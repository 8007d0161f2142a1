"""What would hold up everybody else in an event loop: done beside it, or in turns with them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

TURN_S: Final = 0.005
"""How long one request may keep the loop, where its work can be cut."""


async def beside(work: Callable[[], T], large: bool) -> T:
    """What `work` gives. If it is `large` that is made in a thread; to go there and back takes longer than most work."""
    return await asyncio.to_thread(work) if large else work()


class Turns:
    """For long work that cannot leave the loop."""

    def __init__(self) -> None:
        self._time = asyncio.get_running_loop().time
        self._began = self._time()

    async def pause(self) -> None:
        """Between any two pieces of the work: lets the others have their turn, once it is time."""
        if self._time() - self._began > TURN_S:
            await asyncio.sleep(0)
            self._began = self._time()

"""What a round tells, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lmlite.events import Event, LoadProgress, Started, TextDelta
from lmlite.rounds.run import Told

STARTED, LOADED, TEXT = Started("toy", loads=True), LoadProgress(1.0), TextDelta("Hello")


def told_in_a_loop(scenario: Callable[[Told], None]) -> tuple[list[tuple[int, list[Event]]], list[tuple[int, list[Event]]]]:
    """What was told before the loop's next turn, and what was in it."""
    taken: list[tuple[int, list[Event]]] = []

    def take(index: int, events: list[Event]) -> bool:
        taken.append((index, events))
        return True

    async def main() -> int:
        scenario(Told(take))
        n_before = len(taken)
        await asyncio.sleep(0)
        return n_before

    n_before = asyncio.run(main())
    return taken[:n_before], taken[n_before:]


def test_what_happens_before_the_engine_has_the_request_is_told_together_in_the_next_turn_of_the_loop() -> None:
    def scenario(told: Told) -> None:
        told.hear(STARTED)
        told.hear(LOADED)

    assert told_in_a_loop(scenario) == ([], [(0, [STARTED, LOADED])])


def test_what_the_engine_says_never_comes_before_what_was_heard_earlier() -> None:
    def scenario(told: Told) -> None:
        told.hear(STARTED)
        assert told.take(1, [TEXT])

    assert told_in_a_loop(scenario) == ([(0, [STARTED]), (1, [TEXT])], [])


def test_a_round_that_is_over_tells_nothing_more() -> None:
    def scenario(told: Told) -> None:
        told.hear(STARTED)
        told.forget()

    assert told_in_a_loop(scenario) == ([], [])

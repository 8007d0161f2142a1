"""Who may do what: each request's token is looked at before its body is read, and its owner is held to what is allowed.

A token counts from the moment it is made and not beyond the one in which it is revoked, whichever process does that.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from ..errors import HttpError, RateLimited, StateError
from ..principal import ANYBODY, Principal
from ..records import dataclass

log = logging.getLogger(__name__)

PUBLIC: Final = ""
"""The right that needs no token."""
CHALLENGE: Final = (("WWW-Authenticate", 'Bearer realm="lmlite"'),)
REFUSALS_PER_S: Final = 50.0
"""That are told: programs of a household which have not heard of a new token ask a few times a second, and somebody who tries
tokens as fast as they come must not keep the loop from everybody else: each takes a third of a millisecond, with its line
in the log."""
REFUSALS_AT_ONCE: Final = 250
REFUSAL_WAIT_S: Final = 5.0
"""Clients that are refused do not wait for longer to hear it."""
MINUTE_S: Final = 60.0
BUSY_RETRY_S: Final = 1


class Door:
    """Lets everybody in, as nobody in particular."""

    def admit(self, headers: Mapping[str, str], right: str) -> Principal:
        """Raises `HttpError` 401 and 403."""
        return ANYBODY

    @contextlib.contextmanager
    def working(self, principal: Principal) -> Iterator[None]:
        """Lasts as long as a request that costs something. Raises `RateLimited`."""
        yield

    def charge(self, principal: Principal, n_tokens: int) -> None:
        """What it did cost."""

    def close(self) -> None:
        pass


class GuardedDoor(Door):
    """Asks for tokens. `clock` is the time of day, `monotonic` only goes forward."""

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ):
        from ..store.tokens import TokenReader  # with the code of digests, which others do without

        self._tokens = TokenReader(path, clock)
        self._monotonic = monotonic
        self._refusals = Pace(REFUSALS_PER_S, REFUSALS_AT_ONCE, REFUSAL_WAIT_S)
        self._used: dict[str, Use] = {}

    def admit(self, headers: Mapping[str, str], right: str) -> Principal:
        if right == PUBLIC:
            return ANYBODY
        given = token_of(headers)
        if given is None:
            raise self._refusal("An API token is required (Authorization: Bearer ...).")
        try:
            principal = self._tokens.find(given)
        except StateError as error:
            log.error("tokens cannot be read: %s", error)
            raise
        if principal is None:
            raise self._refusal("The API token is not valid.")
        if right not in principal.rights:
            raise HttpError(403, f"The API token does not have the right '{right}'.")
        return principal

    def _refusal(self, why: str) -> HttpError:
        return HttpError(401, why, CHALLENGE, self._refusals.wait_s(self._monotonic()))

    def count(self) -> int:
        return self._tokens.count()

    @contextlib.contextmanager
    def working(self, principal: Principal) -> Iterator[None]:
        use = self._used.setdefault(principal.name, Use())
        if principal.requests_max and use.running >= principal.requests_max:
            raise RateLimited(f"The token may have {principal.requests_max} requests at once.", BUSY_RETRY_S)
        if principal.tokens_per_minute:
            wait_s = use.wait_s(principal.tokens_per_minute, self._monotonic())
            if wait_s > 0:
                limit = f"The token may use {principal.tokens_per_minute} tokens per minute."
                raise RateLimited(limit, max(1, math.ceil(wait_s)))
        use.running += 1
        try:
            yield
        finally:
            use.running -= 1

    def charge(self, principal: Principal, n_tokens: int) -> None:
        if principal.tokens_per_minute:
            use = self._used.setdefault(principal.name, Use())
            use.spend(n_tokens, principal.tokens_per_minute, self._monotonic())

    def close(self) -> None:
        self._tokens.close()


class Pace:
    """Gives out moments, `per_s` a second once `at_once` of them were taken; nobody waits for longer than `longest_s`."""

    def __init__(self, per_s: float, at_once: int, longest_s: float):
        self._step_s, self._credit_s, self._longest_s = 1 / per_s, at_once / per_s, longest_s
        self._next = 0.0

    def wait_s(self, now: float) -> float:
        """Until the moment that whoever asks gets."""
        self._next = min(max(self._next, now - self._credit_s) + self._step_s, now + self._longest_s)
        return max(0.0, self._next - now)


@dataclass(slots=True)
class Use:
    """What one principal has taken. What it `owes` shrinks with time: a request begins if it is less than a minute's worth,
    however much that request then takes."""

    running: int = 0
    owes: float = 0.0  # tokens
    seen: float = 0.0

    def spend(self, n_tokens: int, per_minute: int, now: float) -> None:
        self._forgive(per_minute, now)
        self.owes += n_tokens

    def wait_s(self, per_minute: int, now: float) -> float:
        self._forgive(per_minute, now)
        return (self.owes - per_minute) * MINUTE_S / per_minute if self.owes >= per_minute else 0.0

    def _forgive(self, per_minute: int, now: float) -> None:
        self.owes = max(0.0, self.owes - (now - self.seen) * per_minute / MINUTE_S)
        self.seen = now


def token_of(headers: Mapping[str, str]) -> str | None:
    """Of the one header or the other; another scheme than Bearer is no token."""
    given = headers.get("authorization")
    if given is not None:
        scheme, _, token = given.partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None
    return headers.get("x-api-key")

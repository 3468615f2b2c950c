"""Tokens, kept while they live: one call upstream however many ask, renewed before anybody has to wait.

the kept token has left    what happens to a request
over half of its life      it gets the token
less                       it gets the token, and a renewal begins in the background
under SPARE_S, or nothing  it waits for the call that is under way or begins one

A refusal is remembered for REFUSED_S, so that a pod that asks in a loop does not cost a call each time.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

from podidentity_core.errors import PodIdentityError, RefusedError, TransientError
from podidentity_core.ports import AccessToken, Clock, Meter
from podidentity_core.services.waiting import take_note

log = logging.getLogger(__name__)

SPARE_S = 30.0
"""A token with less left is not handed out from the cache: it would die on its way."""
RETRY_S = 30.0
"""After a failed renewal the next one waits this long, while the kept token is still good."""
REFUSED_S = 1.0
"""An identity that was just put on the node, or a role just granted, must not be missed for longer than that."""
CAPACITY = 2048
"""Tokens kept at most; each takes 3 to 6 KB. A node with 110 pods has a few hundred."""

T = TypeVar("T")
Fetch = Callable[[], Awaitable[AccessToken]]


@dataclass(slots=True)
class _Kept:
    token: AccessToken
    renew_at_s: float
    until_s: float


class TokenCache:
    """Keeps up to *capacity* tokens, those used last, for *longest_s* at most; with 0 for it, none.

    Times are wall time, as the tokens' own are.
    """

    def __init__(self, clock: Clock, meter: Meter, *, longest_s: float = math.inf, capacity: int = CAPACITY) -> None:
        self._clock = clock
        self._meter = meter
        self.version = 0
        """How often a kept token went, also for its successor; one that joins the others changes no answer."""
        self._longest_s = longest_s
        self._capacity = capacity
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._refused: OrderedDict[Hashable, tuple[float, RefusedError]] = OrderedDict()
        self._calls: dict[Hashable, asyncio.Task[AccessToken]] = {}
        self._running: set[asyncio.Task[AccessToken]] = set()

    def __len__(self) -> int:
        """How many tokens are kept."""
        return len(self._kept)

    def fresh(self, key: Hashable) -> AccessToken | None:
        """Return the kept token for *key* if it needs no renewal yet."""
        kept = self._kept.get(key)
        if kept is None or self._clock.wall_s() >= kept.renew_at_s:
            return None
        self._kept.move_to_end(key)
        return kept.token

    def has(self, key: Hashable) -> bool:
        """Whether `get` would answer from what is kept."""
        kept = self._kept.get(key)
        return kept is not None and self._clock.wall_s() < kept.until_s

    async def get(self, key: Hashable, fetch: Fetch) -> AccessToken:
        """Return the token for *key*, from the cache or through *fetch*; never an expired one.

        Raises what *fetch* raises, to all who wait for it. Cancelling one who waits does not end the call.
        """
        now_s = self._clock.wall_s()
        kept = self._kept.get(key)
        if kept is None or now_s >= kept.until_s:
            self._raise_refusal(key, now_s)
            self._meter.count("nmi_token_cache_count", result="shared" if key in self._calls else "fetched")
            return await asyncio.shield(self._call(key, fetch))
        self._kept.move_to_end(key)
        self._meter.count("nmi_token_cache_count", result="hit")
        if now_s >= kept.renew_at_s:
            kept.renew_at_s = now_s + RETRY_S
            self._call(key, fetch).add_done_callback(self._note_renewal)
        return kept.token

    def clear(self) -> int:
        """Forget all tokens and refusals, also what calls under way will bring; return how many were kept."""
        self.version += 1
        number = len(self._kept)
        self._kept.clear()
        self._refused.clear()
        self._calls.clear()
        return number

    async def close(self) -> None:
        """End the calls that are under way."""
        for call in self._running:
            call.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _call(self, key: Hashable, fetch: Fetch) -> asyncio.Task[AccessToken]:
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = asyncio.create_task(self._fetch(key, fetch))
            self._running.add(call)
            call.add_done_callback(self._running.discard)
            call.add_done_callback(take_note)
        return call

    async def _fetch(self, key: Hashable, fetch: Fetch) -> AccessToken:
        this = asyncio.current_task()
        try:
            token = await fetch()
        except RefusedError as error:
            if self._calls.get(key) is this:
                _remember(self._refused, key, (self._clock.wall_s() + REFUSED_S, error), self._capacity)
            raise
        finally:
            current = self._calls.get(key) is this  # or the cache was emptied meanwhile
            if current:
                del self._calls[key]
        now_s = self._clock.wall_s()
        left_s = token.expires_on_s - now_s
        if left_s <= 0:
            raise TransientError(f"the token service sent a token that expired {-left_s:.0f} s ago")
        life_s = min(left_s - SPARE_S, self._longest_s)
        if current and life_s > 0:
            kept = _Kept(token, renew_at_s=now_s + min(left_s / 2, life_s), until_s=now_s + life_s)
            if _remember(self._kept, key, kept, self._capacity):
                self.version += 1
        return token

    def _raise_refusal(self, key: Hashable, now_s: float) -> None:
        until_s, error = self._refused.get(key, (0.0, None))
        if error is not None and now_s < until_s:
            self._meter.count("nmi_token_cache_count", result="refused")
            raise error.with_traceback(None)

    def _note_renewal(self, call: asyncio.Task[AccessToken]) -> None:
        error = None if call.cancelled() else call.exception()
        if call.cancelled() or error is None:
            self._meter.count("nmi_token_cache_count", result="renewed")
        elif isinstance(error, PodIdentityError):
            self._meter.count("nmi_token_cache_count", result="renewal_failed")
            log.warning("a token could not be renewed and is kept until it expires, error: %s", error)
        else:
            log.error("a bug kept a token from being renewed", exc_info=error)


def _remember(memory: OrderedDict[Hashable, T], key: Hashable, value: T, capacity: int) -> bool:
    """Put *value* behind all others; returns whether another one went for it."""
    replaced = key in memory
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > capacity:
        memory.popitem(last=False)
        return True
    return replaced

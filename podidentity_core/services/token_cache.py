"""Tokens, kept while they live: one call upstream however many ask, renewed before anybody has to wait.

the kept token has left    what happens to a request
over half of its life      it gets the token
less                       it gets the token, and a renewal begins in the background
under SPARE_S, or nothing  it waits for the call that is under way or begins one
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass

from podidentity_core.errors import PodIdentityError, TransientError
from podidentity_core.ports import AccessToken, Clock

log = logging.getLogger(__name__)

SPARE_S = 30.0
"""A token with less left is not handed out from the cache: it would die on its way."""
RETRY_S = 30.0
"""After a failed renewal the next one waits this long, while the kept token is still good."""

Fetch = Callable[[], Awaitable[AccessToken]]


@dataclass(slots=True)
class _Kept:
    token: AccessToken
    renew_at_s: float


class TokenCache:
    """Keeps up to *capacity* tokens, those used last. Times are wall time, as the tokens' own are."""

    def __init__(self, clock: Clock, *, capacity: int = 4096) -> None:
        self._clock = clock
        self._capacity = capacity
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._calls: dict[Hashable, asyncio.Task[AccessToken]] = {}

    def fresh(self, key: Hashable) -> AccessToken | None:
        """Return the kept token for *key* if it needs no renewal yet."""
        kept = self._kept.get(key)
        now_s = self._clock.wall_s()
        if kept is None or now_s >= kept.renew_at_s or kept.token.expires_on_s - now_s < SPARE_S:
            return None
        self._kept.move_to_end(key)
        return kept.token

    async def get(self, key: Hashable, fetch: Fetch) -> AccessToken:
        """Return the token for *key*, from the cache or through *fetch*; never an expired one.

        Raises what *fetch* raises, to all who wait for it. Cancelling one who waits does not end the call.
        """
        now_s = self._clock.wall_s()
        kept = self._kept.get(key)
        if kept is None or kept.token.expires_on_s - now_s < SPARE_S:
            return await asyncio.shield(self._call(key, fetch))
        self._kept.move_to_end(key)
        if now_s >= kept.renew_at_s:
            kept.renew_at_s = now_s + RETRY_S
            self._call(key, fetch).add_done_callback(_log_failed_renewal)
        return kept.token

    async def close(self) -> None:
        """End the calls that are under way."""
        for call in tuple(self._calls.values()):
            call.cancel()
        await asyncio.gather(*self._calls.values(), return_exceptions=True)

    def _call(self, key: Hashable, fetch: Fetch) -> asyncio.Task[AccessToken]:
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = asyncio.create_task(self._fetch(key, fetch))
            call.add_done_callback(_retrieve)
        return call

    async def _fetch(self, key: Hashable, fetch: Fetch) -> AccessToken:
        try:
            token = await fetch()
        finally:
            del self._calls[key]
        now_s = self._clock.wall_s()
        left_s = token.expires_on_s - now_s
        if left_s <= 0:
            raise TransientError(f"the token service sent a token that expired {-left_s:.0f} s ago")
        self._kept[key] = _Kept(token, now_s + left_s / 2)
        self._kept.move_to_end(key)
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return token


def _retrieve(call: asyncio.Task[AccessToken]) -> None:
    """Take note of a failure that nobody waits for any more, so that asyncio does not report it as lost."""
    if not call.cancelled():
        call.exception()


def _log_failed_renewal(call: asyncio.Task[AccessToken]) -> None:
    if call.cancelled() or (error := call.exception()) is None:
        return
    if isinstance(error, PodIdentityError):
        log.warning("a token could not be renewed and is kept until it expires, error: %s", error)
    else:
        log.error("a bug kept a token from being renewed", exc_info=error)

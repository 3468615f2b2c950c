"""One question to a token service: asked again while that may help, within a limit of time, and counted."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from podidentity_core.errors import PodIdentityError, Throttled, TransientError
from podidentity_core.ports import AccessToken, Clock, Meter

RETRIES = 2
BACK_OFF_S = 0.5
"""The first wait before a retry; it doubles, and half of it is by chance, so that nodes do not retry in step."""

LONGEST_WAIT_S = 2.0
"""A longer wait than this is the caller's: whoever asked knows how long it can wait."""


class Passing(TransientError):
    """The service may well answer in a moment."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How to ask, for all questions to one service; *service* is its name in messages."""

    service: str
    limit_s: float
    clock: Clock
    meter: Meter
    chance: Callable[[], float]

    async def measured(self, call: Awaitable[AccessToken], operation: str) -> AccessToken:
        """Return what *call* returns within the limit; its duration or its failure is counted for *operation*.

        Source of names and of what counts: aad-pod-identity pkg/auth/auth.go:88, pkg/nmi/server/server.go,
        pkg/metrics/metrics.go.

        Raises:
            TransientError: when the limit is over; else what *call* raises.
        """
        begun_s = self.clock.monotonic_s()
        try:
            async with asyncio.timeout(self.limit_s):
                token = await call
        except TimeoutError:
            self.meter.count("imds_operations_errors_count", operation_type=operation)
            raise TransientError(f"{self.service} did not answer within {self.limit_s:.0f} s") from None
        except PodIdentityError:
            self.meter.count("imds_operations_errors_count", operation_type=operation)
            raise
        seconds = self.clock.monotonic_s() - begun_s
        self.meter.observe("imds_operations_duration_seconds", seconds, operation_type=operation)
        return token

    async def persist(self, ask: Callable[[], Awaitable[AccessToken]], *, until_s: float = math.inf) -> AccessToken:
        """Ask, and again after a short pause while that may help, but not after *until_s* (monotonic)."""
        retries = 0
        while True:
            try:
                return await ask()
            except (Throttled, Passing) as error:
                wait_s = self._wait_s(retries, error)
                late = self.clock.monotonic_s() + wait_s > until_s
                if retries == RETRIES or wait_s > LONGEST_WAIT_S or late:
                    raise
            retries += 1
            await self.clock.sleep(wait_s)

    def _wait_s(self, retries: int, error: TransientError) -> float:
        back_off_s = BACK_OFF_S * 2.0**retries * (0.5 + self.chance() / 2)
        return max(back_off_s, error.retry_after_s) if isinstance(error, Throttled) else back_off_s

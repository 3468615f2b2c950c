"""How long to wait before the next attempt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Random = Callable[[], float]
"""A source of numbers from 0 up to 1, such as `random.random`."""


@dataclass(slots=True)
class Backoff:
    """Waits that double from *first_s* up to *longest_s*; each is cut by up to half, so that clients do not march."""

    random: Random
    first_s: float = 0.5
    longest_s: float = 30.0
    attempt: int = 0

    def next_s(self) -> float:
        """Give the wait before the next attempt, in seconds."""
        full_s = min(self.longest_s, self.first_s * 2.0 ** min(self.attempt, 32))
        self.attempt += 1
        return full_s * (0.5 + 0.5 * self.random())

    def reset(self) -> None:
        """Start again with the shortest wait."""
        self.attempt = 0

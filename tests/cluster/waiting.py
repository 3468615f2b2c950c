"""Waiting for a condition, with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

from tests.cluster.errors import NotInTime

T = TypeVar("T")

INTERVAL_S = 0.02  # also the precision of what a test measures with `until`


def until(condition: Callable[[], T | None], what: str, *, within_s: float) -> T:
    """Return the first result of *condition* that is true. Raises NotInTime, naming *what* was awaited."""
    deadline_s = time.monotonic() + within_s
    while True:
        if result := condition():
            return result
        if time.monotonic() > deadline_s:
            raise NotInTime(f"not within {within_s} s: {what}")
        time.sleep(INTERVAL_S)

"""A meter that only remembers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from podidentity_core.ports import Meter


class FakeMeter:
    """Adds up what is counted and keeps what is observed, by `name:value of each label`, in the order given."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.observed: dict[str, list[float]] = {}
        self.gauges: dict[str, float] = {}

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add *amount*."""
        self.counts[_series(name, labels)] += int(amount)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Append *value*."""
        self.observed.setdefault(_series(name, labels), []).append(value)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Replace the value."""
        self.gauges[_series(name, labels)] = value


def _series(name: str, labels: dict[str, str]) -> str:
    return ":".join((name, *labels.values()))


if TYPE_CHECKING:
    _: type[Meter] = FakeMeter

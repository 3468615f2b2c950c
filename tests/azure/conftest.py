"""What the tests of the Azure adapters share: a clock that leaps, a meter that remembers, and a sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from apps.sandbox.options import scale_set_nodes
from apps.sandbox.sandbox import Sandbox, SandboxOptions


class LeapingClock:
    """Sleeping takes no time, but the clock moves on. *slept* has every wait."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self.now_s = now_s
        self.slept: list[float] = []

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


class RecordingMeter:
    """Keeps what is measured: name and labels of each count and observation."""

    def __init__(self) -> None:
        self.counts: list[tuple[str, dict[str, str]]] = []
        self.observations: list[tuple[str, dict[str, str]]] = []

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        self.counts.append((name, labels))

    def observe(self, name: str, value: float, **labels: str) -> None:
        assert value >= 0
        self.observations.append((name, labels))

    def gauge(self, name: str, value: float, **labels: str) -> None:
        raise AssertionError(f"{name} is no gauge of these adapters")


@pytest.fixture
def clock() -> LeapingClock:
    return LeapingClock()


@pytest.fixture
def meter() -> RecordingMeter:
    return RecordingMeter()


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(SandboxOptions(nodes=scale_set_nodes(1), operation_s=0.1, run_pods=False)) as running:
        yield running

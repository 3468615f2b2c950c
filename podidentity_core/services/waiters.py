"""Requests that wait for something to change: woken by the change, ended by time, and not too many of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager

from podidentity_core.ports import Clock, Meter
from podidentity_core.services.waiting import wait_at_most

MOST_WAITING = 2048
"""Requests that may wait at a time. Each takes about 10 KB with its connection."""
MOST_OF_ONE_ADDRESS = 256
"""Of which so many may come from one address, so that no pod takes all places."""


class Waiters:
    """Who waits for which topic. A topic is whatever a change can touch: an address, a pod's key."""

    def __init__(self, clock: Clock, meter: Meter) -> None:
        self._clock = clock
        self._meter = meter
        self._by_topic: dict[Hashable, set[asyncio.Event]] = {}
        self._by_address: Counter[str] = Counter()
        self._number = 0
        self.ended = False
        """Whether nobody is to wait any longer."""

    def __len__(self) -> int:
        """How many wait for a change right now."""
        return sum(map(len, self._by_topic.values()))

    @contextmanager
    def place(self, address: str) -> Iterator[str]:
        """Take a place for a request from *address* while it is not answered; yields why there is none, or nothing."""
        if self._by_address[address] >= MOST_OF_ONE_ADDRESS:
            yield f"from {address}"
            return
        if self._number >= MOST_WAITING:
            yield "on this node"
            return
        self._by_address[address] += 1
        self._count(1)
        try:
            yield ""
        finally:
            self._count(-1)
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def wake(self, topics: Iterable[Hashable]) -> None:
        """End the waits for *topics*, which have changed."""
        for topic in topics:
            for waiter in self._by_topic.get(topic, ()):
                waiter.set()

    def end(self) -> None:
        """End all waits, and let none begin."""
        self.ended = True
        self.wake(tuple(self._by_topic))

    async def change_of(self, topic: Hashable, within_s: float) -> None:
        """Return when *topic* changes, after *within_s*, or at the end of all waits."""
        if self.ended:
            return
        changed = asyncio.Event()
        self._by_topic.setdefault(topic, set()).add(changed)
        try:
            await wait_at_most(within_s, changed.wait(), self._clock)
        finally:
            waiters = self._by_topic[topic]
            waiters.discard(changed)
            if not waiters:
                del self._by_topic[topic]

    def _count(self, step: int) -> None:
        self._number += step
        self._meter.gauge("nmi_waiting_requests", self._number)

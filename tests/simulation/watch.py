"""What a watch tells of one kind of objects: late, and after an interruption only what it all came to."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from podidentity_core.model import Change, Gone, Key, Seen, Thing, Unusable

if TYPE_CHECKING:
    from tests.simulation.flaky import Network


class Lane:
    """The watch of one kind of objects: now and then it closes, and what was missed is listed."""

    def __init__(self, network: Network) -> None:
        self.waiting: deque[tuple[int, Seen | Gone | Unusable]] = deque()
        self.wake = asyncio.Event()
        self._network = network
        self._known: dict[Key, str] = {}

    def note(self, change: Seen | Gone | Unusable) -> None:
        """Keep in mind what the reader has been told."""
        if isinstance(change, Gone):
            self._known.pop(change.key, None)
        else:
            self._known[_key(change)] = _uid(change)

    async def carry(self, arrived: asyncio.Queue[tuple[Sequence[int], Sequence[Change]]]) -> None:
        while True:
            await self.wake.wait()
            self.wake.clear()
            if not self.waiting:
                continue
            listed = self._network.chance.random() < 0.2
            await self._network.clock.sleep(self._network.lag_s * self._network.chance.random())
            await self._network.delay()
            numbers = [number for number, _ in self.waiting]
            news = [change for _, change in self.waiting]
            self.waiting.clear()
            news = self._listed(news) if listed else news
            for change in news:
                self.note(change)
            arrived.put_nowait((numbers, news))

    def _listed(self, missed: Sequence[Seen | Gone | Unusable]) -> list[Seen | Gone | Unusable]:
        """What a list shows of *missed*: only what it all came to."""
        news: list[Seen | Gone | Unusable] = []
        vanished: list[Seen | Gone | Unusable] = []
        for key, change in {_key(change): change for change in missed}.items():
            known = self._known.get(key)
            if isinstance(change, Gone):
                if known is not None:
                    vanished.append(Gone(change.kind, key, known))
                continue
            if known is not None and known != _uid(change):
                news.append(Gone(_kind(change), key, known))
            news.append(change)
        return [*news, *vanished]


def _key(change: Seen | Gone | Unusable) -> Key:
    return change.thing.key if isinstance(change, Seen) else change.key


def _kind(change: Seen | Unusable) -> type[Thing]:
    return type(change.thing) if isinstance(change, Seen) else change.kind


def _uid(change: Seen | Unusable) -> str:
    return getattr(change.thing if isinstance(change, Seen) else change, "uid", "")

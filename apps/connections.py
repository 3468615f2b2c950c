"""How many connections a listener has, whose, and what each may take; who must go when there is no room."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

log = logging.getLogger(__name__)

_REPORT_S = 60.0
"""One line of the log in this time says who was turned away."""
_CROWD = 64
"""With so many connections, turns of the event loop may be long. uvloop takes one new connection in a turn, and behind
a thousand that knock a pod would wait, too: in a crowd we take more, though by a longer way."""
_SHARE_AT_ONCE = 8
"""At most this part of all connections is taken at once."""
_SHARE_OF_FILES = 4
"""A listener takes at most this part of the open files that the process may have."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What clients may take of a listener."""

    per_address: int = 256
    """Connections of one address. A pod with a hundred workers that start at once needs a hundred."""
    total: int = 4096
    """Connections of all addresses. The last ones are shared: nobody may have more than are free."""
    head_s: float = 10.0
    """Time for a whole request head, from the connection's start, or from the first byte after an answer."""
    idle_s: float = 90.0
    """Time between requests; longer than usual scrape intervals and than the time SDKs keep an idle connection."""
    unread_s: float = 30.0
    """Time in which a client must have read its answers."""
    head_bytes: int = 32 * 1024
    """Size of a request head. Counted in slices, so that up to a KiB more may pass."""
    head_lines: int = 128
    """Lines of a request head; each costs far more memory than its bytes. Counted like the size."""
    ahead_bytes: int = 16 * 1024
    """What may be sent behind a request that is not answered yet; with more, the connection ends with the answer."""
    sweep_s: float = 1.0
    """Time between two looks at all connections: how late the other times may be noticed."""


def affordable(limits: ConnectionLimits) -> ConnectionLimits:
    """Return *limits* with no more connections than the process's open files allow; raises its soft limit if it can.

    A process without a free descriptor serves nobody, and cannot ask the metadata service either.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.total * _SHARE_OF_FILES
    if soft < wanted and soft != resource.RLIM_INFINITY:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return (
        limits if soft == resource.RLIM_INFINITY else replace(limits, total=min(limits.total, soft // _SHARE_OF_FILES))
    )


class Connection(Protocol):
    """One connection, as far as it is looked at here."""

    address: str
    transport: asyncio.Transport
    cycle: Any
    """The newest request; None before the first."""

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        ...

    def quiet_since_s(self, now_s: float) -> float:
        """Since when nothing is answered."""
        ...

    def is_overdue(self, now_s: float) -> bool:
        """Whether the client has let one of its times pass."""
        ...

    def another(self) -> asyncio.Protocol:
        """Return a new one of the same server."""
        ...


class UntimedLoop:
    """As much of the event loop as uvicorn's protocols use, without a timer for each answer: the sweep keeps time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.create_task = loop.create_task

    def call_later(self, *_: object) -> None:
        """Set no timer."""


class Peers:
    """The connections of one listener, by their peers' addresses. For one event loop, the running one."""

    def __init__(self, limits: ConnectionLimits, listener: socket.socket) -> None:
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.untimed = UntimedLoop(self.loop)
        self.now_s = self.loop.time
        self._listener = listener
        self._looking = False
        self._arriving: set[asyncio.Task[None]] = set()
        self._closed = False
        self._by_address: dict[str, dict[Connection, None]] = {}  # the oldest first
        self._count = 0
        self._turned_away: Counter[str] = Counter()
        self._reported_s = -_REPORT_S

    def admit(self, newcomer: Connection) -> bool:
        """Take *newcomer* if there is room for it, or if a connection without a request can make room; else False.

        An address that has its share makes room among its own. One that has no connection at all may take the place
        of the quietest connection of the address that has the most.
        """
        if self._closed:
            return False
        if self._count >= _CROWD:
            self._look_for_more(newcomer)
        own = self._by_address.get(newcomer.address)
        free = self.limits.total - self._count
        room = True
        if own is not None and len(own) >= min(free, self.limits.per_address):
            room = self._shut_quietest(own)
        elif free <= 0:
            room = any(map(self._shut_quietest, sorted(self._by_address.values(), key=len, reverse=True)))
        if room:
            self._by_address.setdefault(newcomer.address, {})[newcomer] = None
            self._count += 1
        else:
            self._turned_away[newcomer.address] += 1
        return room

    def forget(self, connection: Connection) -> None:
        """Count *connection* no more; does nothing for one that is not counted."""
        group = self._by_address.get(connection.address)
        if group is not None and connection in group:
            del group[connection]
            self._count -= 1
            if not group:
                del self._by_address[connection.address]

    def close(self) -> None:
        """Admit nobody from now on."""
        self._closed = True

    def sweep(self) -> None:
        """Close what is overdue."""
        now_s = self.now_s()
        for connection in [one for group in self._by_address.values() for one in group]:
            if connection.is_overdue(now_s):
                connection.transport.abort()
        if self._turned_away and now_s - self._reported_s >= _REPORT_S:
            self._report()
            self._reported_s = now_s

    def _report(self) -> None:
        [(address, number)] = self._turned_away.most_common(1)
        log.warning(
            "turned away %d connections, %d of them of %s: all that it may have are waiting for answers; "
            "let its programs ask less at once, or see what keeps the answers",
            self._turned_away.total(),
            number,
            address,
        )
        self._turned_away.clear()

    def _look_for_more(self, newcomer: Connection) -> None:
        if not self._looking:
            self._looking = True
            self.loop.call_soon(self._accept, newcomer.another)

    def _accept(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._looking = False
        for _ in range(self.limits.total // _SHARE_AT_ONCE - len(self._arriving)):
            try:
                accepted, _ = self._listener.accept()
            except OSError:  # nobody is there, or the loop's own accept meets the same
                return
            arriving = self.loop.create_task(self._arrive(protocol, accepted))
            self._arriving.add(arriving)
            arriving.add_done_callback(self._arriving.discard)

    async def _arrive(self, protocol: Callable[[], asyncio.Protocol], accepted: socket.socket) -> None:
        with suppress(OSError):
            await self.loop.connect_accepted_socket(protocol, accepted)

    def _shut_quietest(self, group: dict[Connection, None]) -> bool:
        """Shut the oldest that has not asked anything yet, else the one that is quiet longest; False: all are busy."""
        victim = next((one for one in group if one.cycle is None), None)
        if victim is None:
            now_s = self.now_s()
            quiet = [one for one in group if not one.busy]
            victim = min(quiet, key=lambda one: one.quiet_since_s(now_s), default=None)
        if victim is None:
            return False
        self.forget(victim)
        victim.transport.abort()
        return True

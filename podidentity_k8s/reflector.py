"""Keeps one kind of objects known: list, watch, and after every failure watch again, or list again, with back-off.

    list (pages) ──▶ watch from its version ──▶ stream ends ──▶ pause ──▶ watch from the last version seen
      ▲                                            │
      └───────────── pause ◀── too old (410) ◀─────┘

The client library has an informer, but for threads only, and without back-off, bookmarks or a check for dead peers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import aiohttp

from podidentity_core.errors import PodIdentityError, TransientError
from podidentity_core.model import Change, Gone, Key
from podidentity_core.ports import Clock
from podidentity_k8s.api import KubeApi
from podidentity_k8s.backoff import Backoff, Random
from podidentity_k8s.errors import Expired
from podidentity_k8s.listing import pages
from podidentity_k8s.resources import Bookmark, Read, Refused, Removed, Resource

_log = logging.getLogger(__name__)

_LINE_BYTES = 2**24  # ten times the largest object that an API server stores


@dataclass(frozen=True, slots=True)
class Pace:
    """The waits of a reflector, in seconds.

    *watch_s*: how long the server keeps a watch; longer by up to as much again, so that watches do not all end at
    once. *idle_s*: a stream that is silent for so long is dead; bookmarks come about each minute. *healthy_s*: a
    stream that lived so long ends the back-off.
    """

    watch_s: float = 300.0
    idle_s: float = 150.0
    healthy_s: float = 5.0
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0


Emit = Callable[[Sequence[Change]], Awaitable[None]]


class Reflector:
    """Reports what exists of one resource, and how it changes. *synced* is set after the first complete list."""

    def __init__(self, api: KubeApi, resource: Resource, *, clock: Clock, random: Random, pace: Pace) -> None:
        self.synced = asyncio.Event()
        self._api = api
        self._resource = resource
        self._clock = clock
        self._random = random
        self._pace = pace
        self._version: str | None = None  # None: a list is due
        self._known: dict[Key, tuple[str, str]] = {}  # uid and version, so that a list shows what has vanished

    async def run(self, emit: Emit) -> None:
        """Report batches of changes to *emit*, for ever. Whatever the server does only delays it."""
        backoff = Backoff(self._random, self._pace.first_pause_s, self._pace.longest_pause_s)
        while True:
            started_s, version = self._clock.monotonic_s(), self._version
            ended = await self._round(emit)
            # One that has brought news was healthy, too, however short it was; and the list that is due when a server
            # has come back and knows our version no longer need not wait as long as the outage has taught us.
            lived_s = self._clock.monotonic_s() - started_s
            is_news = self._version not in (version, None) or (version is not None and isinstance(ended, Expired))
            if lived_s >= self._pace.healthy_s or is_news:
                backoff.reset()
            pause_s = backoff.next_s()
            level = logging.DEBUG if ended is None else logging.WARNING
            _log.log(level, "watch of %s ended: %s; again in %.1f s", self._resource.path, ended or "in peace", pause_s)
            await self._clock.sleep(pause_s)

    async def _round(self, emit: Emit) -> PodIdentityError | None:
        """List if that is due, and watch until the stream ends: return why, or None when it just came to its end."""
        try:
            if self._version is None:
                self._version = await self._list(emit)
                self.synced.set()
            await self._watch(self._version, emit)
        except Expired as error:
            self._version = None
            return error
        except PodIdentityError as error:
            return error
        return None

    async def _list(self, emit: Emit) -> str:
        listed: set[Key] = set()
        version = ""
        async for page in pages(self._api, self._resource):
            await _emit(emit, [change for read in page.objects for change in self._changes(read)])
            listed.update(read.key for read in page.objects)
            version = page.version
        vanished = [key for key in self._known if key not in listed]
        await _emit(emit, [Gone(self._resource.kind, key, self._known.pop(key)[0]) for key in vanished])
        return version

    async def _watch(self, version: str, emit: Emit) -> None:
        query = {
            **self._resource.selection,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(round(self._pace.watch_s * (1 + self._random()))),
        }
        async with self._api.stream(self._resource.path, query=query) as content:
            async for lines in _batches(content, self._pace.idle_s):
                changes, failure = self._apply(lines)
                await _emit(emit, changes)
                if failure is not None:
                    raise failure

    def _apply(self, lines: Sequence[bytes]) -> tuple[list[Change], PodIdentityError | None]:
        """Take in what has arrived: the changes in it, and what is wrong with the rest, if anything."""
        changes: list[Change] = []
        for line in lines:
            try:
                event = self._resource.read_event(line)
            except TransientError as error:
                return changes, error
            match event:
                case Read():
                    changes += self._changes(event)
                    self._version = event.version
                case Removed(read):
                    self._known.pop(read.key, None)
                    changes.append(Gone(self._resource.kind, read.key, read.uid))
                    self._version = read.version
                case Bookmark(version):
                    self._version = version
                case Refused(said):
                    # Whatever the reason, what the server would have sent is lost: only a list makes up for it.
                    return changes, Expired(f"GET {self._resource.path}: {said}")
        return changes, None

    def _changes(self, read: Read) -> list[Change]:
        """What is new about an object: nothing, its new form, or also that a former one of its name is gone."""
        uid, version = self._known.get(read.key, (read.uid, ""))
        if (uid, version) == (read.uid, read.version):
            return []
        self._known[read.key] = (read.uid, read.version)
        if uid != read.uid:
            return [Gone(self._resource.kind, read.key, uid), read.change]
        return [read.change]


async def _emit(emit: Emit, changes: Sequence[Change]) -> None:
    if changes:
        await emit(changes)


async def _batches(content: aiohttp.StreamReader, idle_s: float) -> AsyncIterator[list[bytes]]:
    """Yield the complete lines that have arrived together, until the stream ends.

    Raises:
        TransientError: when nothing comes for *idle_s*, or a line never ends.
    """
    rest = b""
    while True:
        try:
            async with asyncio.timeout(idle_s):
                chunk = await content.readany()
        except TimeoutError as error:
            raise TransientError(f"nothing came for {idle_s:g} s, the connection is dead") from error
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LINE_BYTES:
            raise TransientError("a line of the watch has no end")
        if lines := [line for line in lines if line.strip()]:
            yield lines

"""Events, as `kubectl describe` shows them: delivered in the background, repeated ones counted, never in the way.

The involved object carries its true kind, so that `kubectl describe` finds the event; the original wrote Go type names.
Events have a rate of their own: a roll-out's hundreds come late rather than never, and delay no other call.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from podidentity_core.errors import NotFound, PodIdentityError
from podidentity_core.model import Key, Node, Pod
from podidentity_core.ports import Clock, Event, EventSink, Severity
from podidentity_k8s.api import MERGE_PATCH, KubeApi
from podidentity_k8s.convert import KINDS
from podidentity_k8s.limits import RateLimit
from podidentity_k8s.wire import GROUP_VERSION

_log = logging.getLogger(__name__)

COMPONENT = "aadpodidentity.k8s.io"
"""The source of all events. Source: aad-pod-identity pkg/mic/mic.go:230."""

_WAITING = 1000
_REMEMBERED = 4096
_SAME_FOR_S = 600.0  # a repetition after a longer time is an event of its own, as with client-go
_PER_S, _BURST = 10.0, 50
_MESSAGE_CHARS = 1024  # the limit of the newer events API; kubectl shows no more than a line or two
_NAME_CHARS = 253


@dataclass(frozen=True, slots=True)
class Reference:
    """The object that an event is about."""

    api_version: str
    kind: str
    key: Key
    uid: str


@dataclass(frozen=True, slots=True)
class _Note:
    about: Reference
    severity: Severity
    reason: str
    message: str


@dataclass(slots=True)
class _Written:
    path: str
    count: int
    last_s: float


class KubeEvents:
    """The EventSink of a cluster. Use it with `async with`; at the end what still waits gets *flush_s* to go out.

    *api* should have no rate limit that others share.
    """

    def __init__(self, api: KubeApi, *, clock: Clock, flush_s: float = 2.0) -> None:
        self._api = api
        self._clock = clock
        self._flush_s = flush_s
        self._limit = RateLimit(_PER_S, burst=_BURST, clock=clock)
        self._waiting: asyncio.Queue[_Note] = asyncio.Queue(_WAITING)
        self._dropped = 0  # since the queue was empty
        self._numbers = itertools.count()
        self._written: OrderedDict[_Note, _Written] = OrderedDict()
        self._delivery: asyncio.Task[None] | None = None

    async def __aenter__(self) -> KubeEvents:
        self._delivery = asyncio.create_task(self._deliver())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._delivery is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._flush_s):
                await self.delivered()
        self._delivery.cancel()
        await asyncio.wait({self._delivery})

    def publish(self, event: Event) -> None:
        """Hand over an event about an object of the model."""
        api_version = "v1" if event.kind in (Pod, Node) else GROUP_VERSION
        about = Reference(api_version, KINDS[event.kind], event.key, event.uid)
        self.record(about, event.severity, event.reason, event.message)

    def record(self, about: Reference, severity: Severity, reason: str, message: str) -> None:
        """Hand over an event about any object."""
        try:
            self._waiting.put_nowait(_Note(about, severity, reason, message[:_MESSAGE_CHARS]))
        except asyncio.QueueFull:
            if not self._dropped:
                _log.warning(
                    "events are dropped, since too many wait, first %r of %s %s", reason, about.kind, about.key
                )
            self._dropped += 1

    async def delivered(self) -> None:
        """Return when all that was handed over is delivered or dropped."""
        await self._waiting.join()

    async def _deliver(self) -> None:
        while True:
            note = await self._waiting.get()
            if self._dropped and self._waiting.empty():
                _log.warning("%d events were dropped, since too many waited", self._dropped)
                self._dropped = 0
            try:
                await self._limit.wait()
                await self._write(note)
            except PodIdentityError as error:
                _log.warning("dropped the event %r of %s %s: %s", note.reason, note.about.kind, note.about.key, error)
            finally:
                self._waiting.task_done()

    async def _write(self, note: _Note) -> None:
        written = self._written.get(note)
        if written is not None and self._clock.monotonic_s() - written.last_s < _SAME_FOR_S:
            try:
                await self._count(written)
            except NotFound:
                pass  # events live for an hour on most servers, less where somebody deletes them
            else:
                return
        await self._create(note)

    async def _count(self, written: _Written) -> None:
        change = {"count": written.count + 1, "lastTimestamp": rfc3339(self._clock.wall_s())}
        await self._api.patch(written.path, change, content_type=MERGE_PATCH)
        written.count += 1
        written.last_s = self._clock.monotonic_s()

    async def _create(self, note: _Note) -> None:
        body = _body(note, self._clock.wall_s(), next(self._numbers))
        collection = f"/api/v1/namespaces/{body['metadata']['namespace']}/events"
        await self._api.post(collection, body)
        path = f"{collection}/{body['metadata']['name']}"
        self._written[note] = _Written(path, 1, self._clock.monotonic_s())
        self._written.move_to_end(note)
        if len(self._written) > _REMEMBERED:
            self._written.popitem(last=False)


def _body(note: _Note, now_s: float, number: int) -> dict[str, Any]:
    about = note.about
    suffix = f".{int(now_s * 1e9) + number:x}"  # two at one moment have two names
    namespace = about.key.namespace or "default"  # events of cluster-wide objects live there
    involved = {
        "apiVersion": about.api_version,
        "kind": about.kind,
        "namespace": about.key.namespace,
        "name": about.key.name,
        "uid": about.uid,
    }
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": about.key.name[: _NAME_CHARS - len(suffix)] + suffix, "namespace": namespace},
        "involvedObject": {name: value for name, value in involved.items() if value},
        "type": note.severity.value,
        "reason": note.reason,
        "message": note.message,
        "source": {"component": COMPONENT},
        "firstTimestamp": rfc3339(now_s),
        "lastTimestamp": rfc3339(now_s),
        "count": 1,
    }


def rfc3339(wall_s: float) -> str:
    """The time as the API writes it, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall_s))


if TYPE_CHECKING:
    _: type[EventSink] = KubeEvents

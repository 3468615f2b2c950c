"""Faults on demand for every server of the sandbox, and a record of the requests that the servers have seen."""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apps.sandbox.serving import Application, Message, Receive, Scope, Send, answer, reset
from apps.sandbox.status import failure

_MOST_SEEN = 200_000
_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """A request and its answer; *status* is 0 while there is none. *at* is the loop's clock."""

    server: str
    method: str
    path: str
    query: str = field(repr=False)
    status: int
    at: float


@dataclass(slots=True)
class Fault:
    """What goes wrong with matching requests.

    *server* is kube, arm, entra, imds, or imds/NODE; *match* is a regular expression searched for in `path?query`.
    First *latency_s* passes; then, if *status* is set, this is the answer, with *body* or the server's usual error
    shape, and *headers*, such as retry-after. *action* is what else may happen: `close` resets the connection without
    an answer, `hang` never answers. *cut_after* ends an answer after so many pieces (lines of a watch); with
    *action* close it is cut off by a reset. *times* is how many requests are hit; None is all of them.
    """

    server: str
    match: str = ""
    method: str = ""
    times: int | None = 1
    latency_s: float = 0.0
    status: int | None = None
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    action: str = ""
    cut_after: int | None = None


class _Cut(Exception):
    """Ends an answer in the middle."""


class Faults:
    """The faults that are set and the requests that were seen, for all servers of one sandbox."""

    def __init__(self) -> None:
        self.active: list[Fault] = []
        self._seen: deque[Seen] = deque(maxlen=_MOST_SEEN)

    def add(self, fault: Fault) -> Fault:
        """Set a fault; faults are tried in the order they were set."""
        if fault.action not in ("", "close", "hang"):
            raise ValueError(f"unknown action {fault.action!r}: use close or hang")
        re.compile(fault.match)
        self.active.append(fault)
        return fault

    def clear(self) -> None:
        """End all faults."""
        self.active.clear()

    def forget(self) -> None:
        """Start the record of requests anew."""
        self._seen.clear()

    def seen(self, server: str = "", method: str = "", match: str = "") -> Sequence[Seen]:
        """Return the answered requests, in order, that these describe (in the sense of `Fault`)."""
        pattern = re.compile(match)
        return [
            entry
            for entry in self._seen
            if _is_server(server, entry.server)
            and method in ("", entry.method)
            and pattern.search(f"{entry.path}?{entry.query}")
        ]

    def guard(self, server: str, application: Application) -> Application:
        """Return *application* with faults and the record around it."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            status = 0

            async def watched(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    self._record(server, scope, status)
                await send(message)

            try:
                await self._apply(server, application, scope, receive, watched)
            finally:
                if not status:
                    self._record(server, scope, 0)

        return guarded

    def _record(self, server: str, scope: Scope, status: int) -> None:
        now = asyncio.get_running_loop().time()
        query = scope["query_string"].decode()
        self._seen.append(Seen(server, scope["method"], scope["path"], query, status, now))

    async def _apply(self, server: str, application: Application, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._take(server, scope)
        if fault is None:
            await application(scope, receive, send)
            return
        if fault.latency_s:
            await asyncio.sleep(fault.latency_s)
        if fault.status is not None:
            body = fault.body if fault.body is not None else _usual_body(server, fault.status)
            raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            await answer(send, fault.status, raw, fault.headers)
        elif fault.cut_after is not None:
            await _cut(fault, application, scope, receive, send)
        elif fault.action == "close":
            await reset(scope, receive)
        elif fault.action == "hang":
            while (await receive())["type"] != "http.disconnect":
                pass
        else:
            await application(scope, receive, send)

    def _take(self, server: str, scope: Scope) -> Fault | None:
        target = f"{scope['path']}?{scope['query_string'].decode()}"
        for fault in self.active:
            if (
                _is_server(fault.server, server)
                and fault.method in ("", scope["method"])
                and re.search(fault.match, target)
            ):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.active.remove(fault)
                return fault
        return None


def _is_server(wanted: str, server: str) -> bool:
    return wanted in ("", server, server.partition("/")[0])


async def _cut(fault: Fault, application: Application, scope: Scope, receive: Receive, send: Send) -> None:
    left = fault.cut_after or 0

    async def counted(message: Message) -> None:
        nonlocal left
        if message["type"] == "http.response.body":
            if left <= 0:
                raise _Cut
            left -= 1
        await send(message)
        if left <= 0 and message["type"] == "http.response.body":
            raise _Cut

    try:
        await application(scope, receive, counted)
    except _Cut:
        if fault.action == "close":
            await reset(scope, receive)
        else:
            await send({"type": "http.response.body", "body": b""})


def _usual_body(server: str, status: int) -> Any:
    reason = _REASONS.get(status, "Unknown")
    told = "A fault of the sandbox."
    if server == "kube":
        return failure(status, reason, told)
    if server == "arm":
        return {"error": {"code": reason, "message": told}}
    return {"error": "unknown", "error_description": told}

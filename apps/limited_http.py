"""One connection of a client that may be hostile, over either of uvicorn's parsers.

uvicorn waits for ever for the rest of a request, keeps whatever comes in meanwhile, and answers any number of requests
that come at once. Here a connection is looked at when its bytes come and in each sweep (apps/connections.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from http import HTTPStatus
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, cast

from apps.connections import Peers

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as _Uvicorn
else:
    _Uvicorn = asyncio.Protocol  # the class that `connection_class` mixes in has the rest

Parser = Literal["httptools", "h11"]

_SLICE = 1024
"""At most so many bytes go to the parser at once, and nothing behind the end of a head: a read may hold thousands."""
_END_OF_HEAD = b"\r\n\r\n"
_LINGER_S = 2.0
"""How long a refused client's bytes are still taken, and dropped: closing earlier would take the answer from it."""

IN_ONE_WRITE = "podidentity.in_one_write"
"""The extension of a scope, an `InOneWrite`. Not with h11: it keeps books of its own."""

InOneWrite = Callable[[bytes, bytes], bool]
"""Sends an `answer_head` and its body as the whole answer. False if that must be done message by message instead."""


def connection_class(parser: Parser) -> type[LimitedConnection]:
    """Return uvicorn's protocol with *parser*, limited. Imports only that parser: a platform may lack the other."""
    implementation = import_module(f"uvicorn.protocols.http.{parser}_impl")
    if parser == "httptools":
        return type("LimitedHttpTools", (OneWriteConnection, implementation.HttpToolsProtocol), {})
    return type("LimitedH11", (LimitedConnection, implementation.H11Protocol), {})


def answer_head(start: MutableMapping[str, Any]) -> bytes:
    """Return the first ASGI message of an answer, with the body's length among its headers, as bytes without an end."""
    status = HTTPStatus(start["status"])
    headers = b"".join(b"%b: %b\r\n" % header for header in start["headers"])
    return b"HTTP/1.1 %d %b\r\n%b" % (status, status.phrase.encode(), headers)


class LimitedConnection(_Uvicorn):
    """A connection that ends when its client takes more than it may.

    *address* is the peer's. Of uvicorn's protocols it uses what both have: `loop`, `transport`, `client`, `cycle` (the
    newest request, with `response_complete` and `more_body`), and the methods that it overrides.
    """

    __slots__ = (  # beside uvicorn's instance dict, which gets slower with more than thirty attributes
        *("_ahead", "_deaf", "_head_after", "_head_bytes", "_head_lines", "_limits", "_peers"),
        *("_quiet_after", "_quiet_since_s", "_unread_since_s", "address"),
    )

    def __init__(self, *args: Any, peers: Peers, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loop = cast("asyncio.AbstractEventLoop", peers.untimed)
        self._peers = peers
        self._limits = peers.limits
        self.address = ""
        self._head_after: Any = None  # the request behind which a head has begun; None: the first one is due
        self._head_bytes = 0
        self._head_lines = 0
        self._quiet_after: Any = None  # the request behind which nothing is answered,
        self._quiet_since_s = 0.0  # and since when: the start, the answer, or the first byte of a head
        self._unread_since_s: float | None = None
        self._ahead = b""
        self._deaf = False  # what still comes is dropped, and after the answer the connection ends

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def another(self) -> LimitedConnection:
        """Return a new one of the same server."""
        kept = {"config": self.config, "server_state": self.server_state, "app_state": self.app_state}
        return type(self)(**kept, peers=self._peers)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, if there is room for it."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._quiet_since_s = self._peers.now_s()
        if not self._peers.admit(self):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room."""
        self._peers.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse *data*, as far as a request may be taken now."""
        before = self.cycle
        waits = before is not None and not before.response_complete  # the hot path: no call of ours
        if waits or self._deaf or len(data) > _SLICE or data.find(_END_OF_HEAD, 0, -1) >= 0:
            self._take(data)
            return
        super().data_received(data)
        if self.cycle is before:
            self._unfinished(data)

    def on_chunk_header(self) -> None:
        """Let headers that follow a body be none of the request's. httptools calls this before each chunk."""
        self.headers = []

    def on_response_complete(self) -> None:
        """Go on with what came meanwhile."""
        super().on_response_complete()
        if self._deaf or self._ahead:
            self._catch_up()

    def send_400_response(self, msg: str) -> None:
        """Say that the bytes are no request, unless that would be taken for the answer to another one."""
        if self.busy:
            self._deaf = True
        elif self._owes_body():
            self.transport.close()
        else:
            super().send_400_response(msg)

    def quiet_since_s(self, now_s: float) -> float:
        """Since when nothing is answered, as far as sweeps have seen it; *now_s* for a busy connection."""
        if self.busy:
            return now_s
        if self._quiet_after is not self.cycle:
            self._quiet_after, self._quiet_since_s = self.cycle, now_s
        return self._quiet_since_s

    def is_overdue(self, now_s: float) -> bool:
        """Whether the client has let one of its times pass. To be asked in each sweep."""
        if not self.transport.get_write_buffer_size():
            self._unread_since_s = None
        elif self._unread_since_s is None:
            self._unread_since_s = now_s
        elif now_s - self._unread_since_s > self._limits.unread_s:
            return True
        allowed_s = self._limits.head_s if self._head_after is self.cycle else self._limits.idle_s
        return now_s - self.quiet_since_s(now_s) > allowed_s

    def _take(self, data: bytes) -> None:
        begin = 0
        while begin < len(data) and not self._deaf and not self.transport.is_closing():
            if self.busy:
                self._put_off(data[begin:])
                return
            end = data.find(_END_OF_HEAD, begin, begin + _SLICE)
            end = begin + _SLICE if end < 0 else end + len(_END_OF_HEAD)
            part, before, begin = data[begin:end], self.cycle, end
            super().data_received(part)
            if self.cycle is before:
                self._unfinished(part)

    def _put_off(self, data: bytes) -> None:
        if len(self._ahead) + len(data) <= self._limits.ahead_bytes:
            self._ahead += data
        else:
            self._ahead, self._deaf = b"", True

    def _catch_up(self) -> None:
        if not self._deaf:
            ahead, self._ahead = self._ahead, b""
            self._take(ahead)
        elif not self.busy:
            self._end()

    def _unfinished(self, part: bytes) -> None:
        """Count *part*, which has ended no head: the beginning of one, or the body of an answered request."""
        if self._head_after is not self.cycle:
            self._head_after = self._quiet_after = self.cycle
            self._quiet_since_s = self._peers.now_s()
            self._head_bytes = self._head_lines = 0
        self._head_bytes += len(part)
        self._head_lines += part.count(b"\n")
        if self._head_bytes > self._limits.head_bytes or self._head_lines > self._limits.head_lines:
            self._refuse()

    def _owes_body(self) -> bool:
        """Whether the newest request was answered before its body had come, or has been."""
        return self.cycle is not None and self.cycle.more_body

    def _refuse(self) -> None:
        if self.transport.is_closing():
            return
        if not self._owes_body():
            status = b"431 Request Header Fields Too Large" if self._head_lines else b"414 URI Too Long"
            text = b"a request may have %d bytes and %d lines\n" % (self._limits.head_bytes, self._limits.head_lines)
            headers = b"content-type: text/plain\r\ncontent-length: %d\r\nconnection: close" % len(text)
            self.transport.write(b"HTTP/1.1 %b\r\n%b\r\n\r\n%b" % (status, headers, text))
        self._end()

    def _end(self) -> None:
        """Send what is to be sent, and close when the client has, or soon."""
        self._deaf = True
        if not self.transport.is_closing():
            self.transport.write_eof()
            self._peers.loop.call_later(_LINGER_S, self.transport.abort)


class OneWriteConnection(LimitedConnection):
    """A connection whose requests can be answered in one write.

    uvicorn writes the head and the body of an answer each by itself: for a small answer, two packets and a fifth of
    all that it costs. Of its newest request this uses what it keeps of the answer's state, as httptools' protocol has.
    """

    def on_message_begin(self) -> None:
        """Offer it to the application."""
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)["extensions"] = {IN_ONE_WRITE: self._answer_in_one_write}

    def _answer_in_one_write(self, head: bytes, body: bytes) -> bool:
        request = self.cycle
        if request.disconnected or self.flow.write_paused:
            return False
        request.response_started = request.response_complete = True
        request.waiting_for_100_continue = False
        end_of_head = b"\r\n" if request.keep_alive else b"connection: close\r\n\r\n"
        self.transport.write(b"".join((head, end_of_head, body)))
        request.message_event.set()
        if not request.keep_alive:
            self.transport.close()
        request.on_response()
        return True

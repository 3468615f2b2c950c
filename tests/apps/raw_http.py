"""Requests as bytes on a socket: what HTTP libraries would correct or refuse to send, and from any loopback address."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

DEADLINE_S = 10.0
MARKED: Mapping[str, str] = {"Metadata": "true"}
"""The headers that the metadata service wants."""


@dataclass(frozen=True)
class Reply:
    """An answer: its headers in order, their names in lower case, and its body with the framing taken off."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)


async def connect(port: int, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect from *address*, as a pod does."""
    return await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))


def request(target: str, *, method: str = "GET", headers: Mapping[str, str] = MARKED, body: bytes = b"") -> bytes:
    """Return the bytes of a request with *target* in its request line, as it is."""
    every = {"Host": "169.254.169.254", **headers, "Connection": "close"}
    if body:
        every["Content-Length"] = str(len(body))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in every.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


async def send(port: int, raw: bytes, *, address: str) -> Reply:
    """Send *raw* on a connection of its own and return the answer."""
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await connect(port, address)
        try:
            writer.write(raw)
            return parsed(await reader.read(), method=raw.partition(b" ")[0].decode())
        finally:
            writer.close()


async def exchange(port: int, raw: bytes, *, address: str, half_close: bool = False) -> bytes:
    """Send *raw* on a connection of its own and return all that comes back until the server closes it, or resets it.

    With *half_close* the client says that nothing more comes.
    """
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await connect(port, address)
        try:
            writer.write(raw)
            if half_close:
                writer.write_eof()
            return await until_the_end(reader)
        finally:
            writer.transport.abort()


async def until_the_end(reader: asyncio.StreamReader) -> bytes:
    """Return all that still comes; a reset is an end, too."""
    parts: list[bytes] = []
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(65536):
            parts.append(part)
    return b"".join(parts)


def parsed(raw: bytes, *, method: str = "GET") -> Reply:
    """Read one answer to *method*. Raises http.client.HTTPException for what is none."""
    return _next_reply(_Canned(raw), method)


def all_parsed(raw: bytes, *, method: str = "GET") -> list[Reply]:
    """Read answers that follow each other, the first one to *method*. Raises HTTPException for what is none."""
    stream, replies = _Canned(raw), list[Reply]()
    while stream.tell() < len(raw):
        replies.append(_next_reply(stream, "GET" if replies else method))
    return replies


def _next_reply(stream: _Canned, method: str) -> Reply:
    response = http.client.HTTPResponse(cast("Any", stream), method=method)
    response.begin()
    headers = tuple((name.lower(), value) for name, value in response.getheaders())
    return Reply(response.status, headers, response.read())


class _Canned(io.BytesIO):
    """As much of a socket as `http.client` looks at. An answer's end leaves the rest readable."""

    def makefile(self, *_: object) -> _Canned:
        return self

    def close(self) -> None:
        pass

"""Requests as bytes on a socket: what HTTP libraries would correct or refuse to send, and from any loopback address."""

from __future__ import annotations

import asyncio
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


def parsed(raw: bytes, *, method: str = "GET") -> Reply:
    """Read one answer to *method*. Raises http.client.HTTPException for what is none."""
    response = http.client.HTTPResponse(cast("Any", _Canned(raw)), method=method)
    response.begin()
    headers = tuple((name.lower(), value) for name, value in response.getheaders())
    return Reply(response.status, headers, response.read())


class _Canned:
    """As much of a socket as `http.client` looks at."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self._raw)

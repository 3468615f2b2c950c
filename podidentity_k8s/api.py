"""Requests to the API server: bytes in, bytes out, every status checked, every wait bounded.

The client library gives us the configuration and its TLS; the requests are our own, because its call path costs four
times as much and leaves the status of raw answers unchecked.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp

from podidentity_core.errors import Conflict, Throttled, TransientError
from podidentity_core.ports import Clock
from podidentity_k8s.backoff import Backoff, Random
from podidentity_k8s.config import Credentials
from podidentity_k8s.errors import Expired, error_of, translated
from podidentity_k8s.limits import RateLimit

JSON = "application/json"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"

_CONNECT_S = 10.0
_CALL_S = 30.0
_LONGEST_PAUSE_S = 10.0  # a longer Retry-After is the caller's affair
_READ_BUFFER_BYTES = 2**21  # a watch event may be as large as the largest object, 1.5 MB
_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))  # a dead peer is noticed in a minute


def _kept_alive(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if (option := getattr(socket, name, None)) is not None:  # not every system has all of them
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    body: Any
    timeout_s: float
    content_type: str = JSON
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        return {"Accept": JSON} if self.body is None else {"Accept": JSON, "Content-Type": self.content_type}


class Connection:
    """The connections of one process to its API server. Use it with `async with`."""

    def __init__(self, credentials: Credentials, *, user_agent: str) -> None:
        self._credentials = credentials
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Connection:
        self._session = aiohttp.ClientSession(
            # No limit on connections: watches hold theirs, and a lease's renewal must not wait for a free one.
            connector=aiohttp.TCPConnector(limit=0, ssl=self._credentials.tls, socket_factory=_kept_alive),
            headers={"User-Agent": self._user_agent},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            read_bufsize=_READ_BUFFER_BYTES,
            trust_env=True,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def open(self, request: _Request) -> aiohttp.ClientResponse:
        """Send a request and return the answer's head. The caller bounds the wait and closes the answer."""
        if self._session is None:
            raise RuntimeError("the connection is used outside of its `async with`")
        configuration = self._credentials.configuration
        authorization = await self._credentials.authorization()
        return await self._session.request(
            request.method,
            self._credentials.host + request.path,
            params=request.query,
            data=None if request.body is None else json.dumps(request.body).encode(),
            headers={**request.headers, **({"Authorization": authorization} if authorization else {})},
            allow_redirects=False,  # the credentials are for this server alone
            proxy=configuration.proxy or None,
            server_hostname=configuration.tls_server_name or None,
        )


class KubeApi:
    """Calls with the habits of one caller: its rate limit, and how often a failed call is repeated.

    Several share one `Connection`: the lease's calls have no limit, so that a burst of work never loses the lease.
    """

    def __init__(
        self, connection: Connection, *, clock: Clock, random: Random, limit: RateLimit | None = None, retries: int = 2
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._random = random
        self._limit = limit
        self._retries = retries

    async def get(self, path: str, *, query: Mapping[str, str] | None = None, timeout_s: float = _CALL_S) -> bytes:
        """Read. A transient failure is repeated."""
        return await self._repeated(_Request("GET", path, None, timeout_s, query=query or {}))

    async def post(self, path: str, body: Any, *, timeout_s: float = _CALL_S) -> bytes:
        """Create. Repeated only when the server has said that it did nothing."""
        return await self._repeated(_Request("POST", path, body, timeout_s))

    async def put(self, path: str, body: Any, *, timeout_s: float = _CALL_S) -> bytes:
        """Replace. Repeated on transient failures: the resource version in *body* makes a second write a `Conflict`."""
        return await self._repeated(_Request("PUT", path, body, timeout_s))

    async def patch(self, path: str, body: Any, *, content_type: str, timeout_s: float = _CALL_S) -> bytes:
        """Change a part. Repeated on transient failures, so *body* must say the same when it is applied twice."""
        return await self._repeated(_Request("PATCH", path, body, timeout_s, content_type))

    async def delete(self, path: str, body: Any = None, *, timeout_s: float = _CALL_S) -> bytes:
        """Delete. Repeated on transient failures: the second time it may be `NotFound`."""
        return await self._repeated(_Request("DELETE", path, body, timeout_s))

    async def _repeated(self, request: _Request) -> bytes:
        backoff = Backoff(self._random, first_s=0.2, longest_s=2.0)
        while True:
            if self._limit is not None:
                await self._limit.wait()
            try:
                return await self._once(request)
            except TransientError as error:
                pause_s = _pause_s(error, request.method, backoff.next_s())
                if pause_s is None or backoff.attempt > self._retries:
                    raise
            await self._clock.sleep(pause_s)

    async def _once(self, request: _Request) -> bytes:
        action = f"{request.method} {request.path}"
        with translated(action):
            async with asyncio.timeout(request.timeout_s):
                answer = await self._connection.open(request)
                async with answer:
                    content = await answer.read()
        _check(action, answer, content)
        return content

    @asynccontextmanager
    async def stream(
        self, path: str, *, query: Mapping[str, str], head_s: float = _CALL_S
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """Open an answer without an end, such as a watch. Reading it is bounded by the reader, not here.

        It passes the rate limit: whoever opens streams keeps a back-off of its own.
        """
        action = f"GET {path}"
        with translated(action):
            async with asyncio.timeout(head_s):
                answer = await self._connection.open(_Request("GET", path, None, head_s, query=query))
            try:
                async with asyncio.timeout(head_s):
                    refusal = await answer.read() if answer.status >= 300 else b""
                _check(action, answer, refusal)
                yield answer.content
            finally:
                answer.close()


def _check(action: str, answer: aiohttp.ClientResponse, content: bytes) -> None:
    """Let only an API server's success pass: a proxy's page may come with status 200, too."""
    if answer.status >= 300:
        raise error_of(action, answer.status, content, answer.headers)
    if answer.content_type != JSON:
        raise TransientError(f"{action}: the answer is {answer.content_type}, so it is not from an API server")


def _pause_s(error: TransientError, method: str, backoff_s: float) -> float | None:
    """How long to wait before the call is repeated; None when it must not be.

    A conflict needs a new decision, an expired version a new list. After any other failure of a POST nobody knows
    whether the object was created.
    """
    if isinstance(error, Throttled):
        return max(error.retry_after_s, backoff_s) if error.retry_after_s <= _LONGEST_PAUSE_S else None
    if isinstance(error, Conflict | Expired) or method == "POST":
        return None
    return backoff_s

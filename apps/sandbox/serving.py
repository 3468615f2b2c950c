"""The sandbox's sockets: many loopback addresses, each with its own application, on two uvicorn servers."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Address = tuple[str, int]


class _Protocol(HttpToolsProtocol):
    """Lets applications reach the connection, so that a fault can cut it."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["transport"] = self.transport


class Listeners:
    """Bind addresses, give each an application, start, and later stop. No signal handler is touched."""

    def __init__(self) -> None:
        self._sockets: dict[bool, list[socket.socket]] = {False: [], True: []}
        self._applications: dict[Address, Application] = {}
        self._running: list[tuple[uvicorn.Server, asyncio.Task[None]]] = []

    def bind(self, host: str = "127.0.0.1", *, tls: bool = False, port: int = 0) -> Address:
        """Reserve an address (port 0: a free one) and return it. Raises OSError."""
        # asyncio turns Nagle's algorithm off (40 ms per answer here) only if the protocol is named.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sockets[tls].append(listener)
        listener.bind((host, port))
        address: Address = listener.getsockname()
        return address

    def serve(self, address: Address, application: Application) -> None:
        """Answer requests at a bound address with *application*."""
        self._applications[address] = application

    async def start(self, context: ssl.SSLContext) -> None:
        """Listen on all bound addresses; *context* is for those bound with tls."""
        for tls, sockets in self._sockets.items():
            factory: dict[str, Any] = {"ssl_context_factory": lambda *_: context} if tls else {}
            config = uvicorn.Config(
                self._dispatch,
                http=_Protocol,
                interface="asgi3",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                **factory,
            )
            config.load()
            server = uvicorn.Server(config)
            server.lifespan = config.lifespan_class(config)
            await server.startup(sockets=sockets)
            self._running.append((server, asyncio.create_task(server.main_loop())))

    def cut(self, port: int) -> None:
        """Reset all connections to a port of ours."""
        for server, _ in self._running:
            for connection in tuple(server.server_state.connections):
                # Not the transport's own address: it has none between its end and the time its protocol is told.
                server_at = connection.server if isinstance(connection, _Protocol) else None
                if server_at and server_at[1] == port and connection.transport is not None:
                    connection.transport.abort()

    async def stop(self) -> None:
        """Close all connections, running requests included, and all sockets."""
        await asyncio.gather(*(_stop(*entry) for entry in self._running))
        self._running.clear()
        for listener in (*self._sockets[False], *self._sockets[True]):
            listener.close()

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The end of the sandbox cancels what still runs: no error, so uvicorn must not report one.
        try:
            await self._applications[tuple(scope["server"])](scope, receive, send)
        except asyncio.CancelledError:
            await reset(scope, receive)


async def _stop(server: uvicorn.Server, clock: asyncio.Task[None]) -> None:
    clock.cancel()
    for listener in server.servers:
        listener.close()
    for connection in tuple(server.server_state.connections):
        if (transport := connection.transport) is not None:
            transport.abort()
    await asyncio.sleep(0)  # watches and hanging requests see that, and end
    tasks = tuple(server.server_state.tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(clock, *tasks, return_exceptions=True)


async def reset(scope: Scope, receive: Receive) -> None:
    """Cut the connection of a request, and return once it is cut."""
    scope["state"]["transport"].abort()
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(receive: Receive) -> bytes:
    """Return a request's whole body."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def answer(
    send: Send, status: int, body: Any, headers: Mapping[str, str] | None = None, media: str = "application/json"
) -> None:
    """Send one response; *body* is bytes, or anything that JSON can carry."""
    raw = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    pairs = {"content-type": media, "content-length": str(len(raw)), **(headers or {})}
    encoded = [(key.encode(), value.encode()) for key, value in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": raw})


def header(scope: Scope, name: str) -> str:
    """Return a request header, or nothing; *name* in lower case."""
    wanted = name.encode()
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == wanted), "")

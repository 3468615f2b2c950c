"""HTTP listeners and termination, for both daemons."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import uvicorn

from apps.connections import ConnectionLimits, Peers, affordable
from apps.limited_http import Parser, connection_class
from podidentity_core.errors import ConfigurationError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An ASGI application; FastAPI is one."""

ALL_INTERFACES = ""
_LIMITS = ConnectionLimits()
_BACKLOG = 4096  # connections that wait to be accepted; the kernel's own limit is no higher as a rule
_SEND_BUFFER = 64 * 1024  # the kernel would let it grow to megabytes, and counts it to our pod
_REMEDIES = {
    errno.EADDRINUSE: "stop the program that uses it, or choose another port with {flag}",
    errno.EACCES: "choose a port from 1024 on with {flag}, or run with the right to use this one",
    errno.EADDRNOTAVAIL: "this machine does not have the address: choose one that it has",
}


class BindError(ConfigurationError):
    """An address cannot be listened on. The message names the address, the flag and the remedy."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running HTTP server; *port* is the one listened on, also when 0 was asked for."""

    port: int
    _server: uvicorn.Server
    _peers: Peers
    _housekeeping: asyncio.Task[None]

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more, let running requests end, and cancel those that have not after *grace_s*."""
        self._housekeeping.cancel()
        self._peers.close()
        for listener in self._server.servers:
            listener.close()
        await asyncio.sleep(0)  # a connection that was accepted just now becomes known
        state = self._server.server_state
        for connection in list(state.connections):
            connection.shutdown()
        if state.tasks:
            _, late = await asyncio.wait(set(state.tasks), timeout=grace_s)
            for request in late:
                request.cancel()
            await asyncio.gather(*late, return_exceptions=True)


async def start_server(
    app: Application,
    host: str,
    port: int,
    *,
    flag: str,
    date_header: bool = True,
    http: Parser = "httptools",
    limits: ConnectionLimits = _LIMITS,
) -> Server:
    """Listen on *host* (empty: all interfaces, IPv4 and IPv6) and *port* (0: a free one), and serve *app*.

    The peer's address is the socket's, whatever the request's headers say. Bodies of requests are dropped. Signals are
    the caller's affair. *http* is the parser: h11 is for platforms without httptools, and slower.
    Raises BindError, which names *flag* as the way to another port.
    """
    listener = _bound(host, port, flag)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)  # its connections inherit it
    peers = Peers(affordable(limits), listener)
    config = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", partial(connection_class(http), peers=peers)),
        h11_max_incomplete_event_size=2 * limits.head_bytes,  # not what limits it: connections.py does
        backlog=_BACKLOG,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level=logging.ERROR,  # what a malformed request makes it say, any pod could make it say all day
        access_log=False,
        proxy_headers=False,  # or a pod could choose its own address with X-Forwarded-For
        server_header=False,
        date_header=date_header,
    )
    config.load()
    server = uvicorn.Server(config)
    # Not server.serve(): it takes over the signals, and looks ten times a second whether it is to end.
    server.lifespan = config.lifespan_class(config)
    await server.on_tick(0)
    await server.startup(sockets=[listener])
    housekeeping = asyncio.create_task(_keep_house(server, peers), name="connections")
    return Server(listener.getsockname()[1], server, peers, housekeeping)


def wait_for_termination(loop: asyncio.AbstractEventLoop) -> asyncio.Future[signal.Signals]:
    """Return a future that ends with the first SIGTERM or SIGINT; later ones are ignored, as in the original.

    From the call on, these signals end the process no more. For the main thread only.
    """
    received: asyncio.Future[signal.Signals] = loop.create_future()

    def remember(number: signal.Signals) -> None:
        if not received.done():
            received.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, remember, number)
    return received


async def _keep_house(server: uvicorn.Server, peers: Peers) -> None:
    """Renew the `Date` header that the server puts into each answer, and end connections that take too long."""
    while True:
        await asyncio.sleep(peers.limits.sweep_s)
        await server.on_tick(0)
        peers.sweep()


def _bound(host: str, port: int, flag: str) -> socket.socket:
    """Return a listening socket, so that a taken port is known before anything else is started."""
    try:
        if host == ALL_INTERFACES and socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        shown = f"[{host}]" if ":" in host else host or "*"
        code = error.errno or 0
        reason = os.strerror(code).lower() if code > 0 else "no such host"  # name resolution counts below zero
        remedy = _REMEDIES.get(code, "choose another address, or another port with {flag}").format(flag=flag)
        raise BindError(f"cannot listen on {shown}:{port}: {reason}; {remedy}") from error

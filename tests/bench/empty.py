"""An application that answers always the same, on NMI's own server: what HTTP itself costs. Prints its port."""

from __future__ import annotations

import asyncio

import uvloop

from apps.serving import Receive, Scope, Send, start_server

BODY = b"x" * 1500  # as long as a token


async def _empty(_: Scope, __: Receive, send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


async def _serve() -> None:
    server = await start_server(_empty, "127.0.0.1", 0, flag="--none", date_header=False)
    print(server.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve())

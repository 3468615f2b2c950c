"""What operators and their tools ask of a daemon, on ports of its own: probes and metrics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from apps.metrics import CONTENT_TYPE
from apps.serving import ALL_INTERFACES, Application, Receive, Scope, Send, Server, start_server

PLAIN = b"text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Text:
    """What a page says."""

    body: bytes
    status: int = 200
    content_type: bytes = PLAIN


@dataclass(frozen=True, slots=True)
class Page:
    """A text that is made anew for each request. Empty *methods*: it answers to any. *local*: to this node only."""

    text: Callable[[], Text]
    methods: Collection[str] = ()
    local: bool = False


Pages = Mapping[str, Page]


def pages_app(pages: Pages) -> Application:
    """Return an application that answers with the page at exactly this path; else 404."""

    async def app(scope: Scope, _: Receive, send: Send) -> None:
        page = pages.get(scope["path"])
        if page is None:
            text = Text(b"404 page not found\n", 404)
        elif page.methods and scope["method"] not in page.methods:
            text = Text(b"use %b\n" % " or ".join(page.methods).encode(), 405)
        elif page.local and not _is_local(scope):
            text = Text(b"ask from this node, over 127.0.0.1\n", 403)
        else:
            text = page.text()
        headers = [(b"content-type", text.content_type), (b"content-length", str(len(text.body)).encode())]
        await send({"type": "http.response.start", "status": text.status, "headers": headers})
        await send({"type": "http.response.body", "body": text.body})

    return app


def _is_local(scope: Scope) -> bool:
    client = scope["client"]
    return client is not None and str(client[0]).removeprefix("::ffff:") in ("127.0.0.1", "::1")


async def start_probe(
    port: int, active: Callable[[], bool], *, more: Pages | None = None, flag: str = "--http-probe-port"
) -> Server:
    """Serve `/healthz` on all interfaces: always 200, `Active` or `Not Active`; and the pages in *more*.

    Source: aad-pod-identity pkg/probes/probes.go.
    """
    healthz = Page(lambda: Text(b"Active" if active() else b"Not Active"))
    app = pages_app({"/healthz": healthz, **(more or {})})
    return await start_server(app, ALL_INTERFACES, port, flag=flag, date_header=False)


async def start_metrics(port: int, render: Callable[[], bytes], *, flag: str = "--prometheus-port") -> Server:
    """Serve what *render* returns as `/metrics`, on all interfaces."""
    app = pages_app({"/metrics": Page(lambda: Text(render(), content_type=CONTENT_TYPE))})
    return await start_server(app, ALL_INTERFACES, port, flag=flag, date_header=False)

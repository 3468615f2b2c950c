"""NMI's application behind the real server: the core's fakes for cluster and tokens, a recording metadata service."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from apps.connections import ConnectionLimits
from apps.limited_http import Parser
from apps.metrics import PrometheusMeter
from apps.nmi.api import ApiPorts, ApiSettings, create_app
from apps.nmi.passthrough import ImdsPassthrough
from apps.serving import Receive, Scope, Send, start_server
from podidentity_core.model import Assignment, AssignmentState, ExceptionRule, IdentityKind, Pod
from podidentity_core.selection import Patience
from podidentity_core.services.tokens import TokenPorts, TokenService, TokenSettings
from podidentity_core.testing import builders as build
from podidentity_core.testing.clock import FakeClock
from podidentity_core.testing.fakes.azure import FakeTokens
from podidentity_core.testing.fakes.cluster import FakeCluster
from tests.apps.raw_http import DEADLINE_S, MARKED, Reply, request, send

TOKEN = "/metadata/identity/oauth2/token"
VAULT = "https://vault.azure.net"
ASK = f"{TOKEN}?api-version=2018-02-01&resource={VAULT}"
POD = build.pod(ips=("127.1.0.1",))
"""The pod of the address that requests come from by default."""
OTHER = build.pod("other-0", label="other", ips=("127.1.0.2",))
WEB = build.assignment(POD)
CREATED = replace(WEB, state=AssignmentState.CREATED)
OTHERS = build.assignment(OTHER, build.identity("other"), build.binding("other", selector="other"))

NAMED = build.client_id("web")
RESOURCE_ID = build.resource("web").text
AT_ONCE = Patience(absent_s=0, created_s=0)
DEFAULTS = ApiSettings()
USUAL = ConnectionLimits()


def problem(reply: Reply) -> tuple[int, str, str]:
    """Status, error and description of an answer in IMDS's shape, whose frame is checked on the way."""
    assert reply.header("content-type") == "application/json; charset=utf-8"
    assert reply.header("content-length") == str(len(reply.body))
    body = json.loads(reply.body)
    assert list(body) == ["error", "error_description"]
    return reply.status, body["error"], body["error_description"]


@dataclass
class Upstream:
    """A metadata service that answers 200 to everything and remembers what it was asked."""

    targets: list[str] = field(default_factory=list)
    requests: list[Scope] = field(default_factory=list)

    async def __call__(self, scope: Scope, _: Receive, send_: Send) -> None:
        query = scope["query_string"].decode()
        self.targets.append(scope["raw_path"].decode() + (f"?{query}" if query else ""))
        self.requests.append(scope)
        await send_({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send_({"type": "http.response.body", "body": b"from upstream"})


@dataclass
class NmiServer:
    """A running NMI, and all that it talks to. Its clock stands still until a test moves it."""

    port: int
    cluster: FakeCluster
    tokens: FakeTokens
    clock: FakeClock
    meter: PrometheusMeter
    service: TokenService
    upstream: Upstream

    async def get(
        self, target: str = ASK, *, address: str = "127.1.0.1", method: str = "GET", headers: Mapping[str, str] = MARKED
    ) -> Reply:
        """Ask for *target* from *address*."""
        return await send(self.port, request(target, method=method, headers=headers), address=address)

    async def waiting(self, number: int = 1) -> None:
        """Return once *number* requests wait for something to change."""
        async with asyncio.timeout(DEADLINE_S):
            while self.waiters != number:  # noqa: ASYNC110  # that somebody waits sets no event
                await asyncio.sleep(0.001)

    @property
    def waiters(self) -> int:
        return self.service.waiting


@asynccontextmanager
async def nmi_server(
    *things: Pod | Assignment | ExceptionRule,
    api: ApiSettings = DEFAULTS,
    patience: Patience = Patience(),
    namespaced: bool = False,
    following: bool = True,
    endpoint: str = "",
    http: Parser = "httptools",
    limits: ConnectionLimits = USUAL,
) -> AsyncIterator[NmiServer]:
    """Serve NMI for a cluster with *things*; without *following* it has not heard of them yet.

    *endpoint* is another metadata service than the recording one; *http* is the parser.
    """
    clock, cluster, meter, upstream = FakeClock(), FakeCluster(*things), PrometheusMeter(), Upstream()
    tokens = FakeTokens(clock)
    ports = TokenPorts(cluster, cluster, {IdentityKind.USER_ASSIGNED: tokens}, tokens, clock, meter)
    service = TokenService(ports, TokenSettings("node-1", namespaced, "default", patience))
    behind = await start_server(upstream, "127.0.0.1", 0, flag="--none")
    passthrough = ImdsPassthrough(endpoint or f"http://127.0.0.1:{behind.port}")
    app = create_app(service, passthrough, api, ApiPorts(clock, meter, logging.getLogger("apps.nmi.audit").log))
    server = await start_server(app, "127.0.0.1", 0, flag="--nmi-port", date_header=False, http=http, limits=limits)
    work = asyncio.create_task(service.run()) if following else None
    try:
        yield NmiServer(server.port, cluster, tokens, clock, meter, service, upstream)
    finally:
        if work is not None:
            work.cancel()
            await asyncio.wait({work})
        await server.stop(0)
        await passthrough.aclose()
        await behind.stop(0)

"""NMI's HTTP API: what a pod finds at 169.254.169.254.

One ASGI endpoint inside a FastAPI application: a request is judged by its raw path, which no router may decode first,
and a warm token must cost little more than an empty answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI

from apps.nmi.answers import denial, failure, send_answer, token_answer
from apps.serving import Receive, Scope, Send
from podidentity_core.errors import PodIdentityError
from podidentity_core.metadata_path import MetadataPath, Route, classify
from podidentity_core.ports import Clock, Meter
from podidentity_core.reasons import Explanation, Reason, because
from podidentity_core.services.tokens import Denied, Granted, TokenService
from podidentity_core.token_request import TokenRequest, parse_query, redact

log = logging.getLogger(__name__)

CLIENT_GONE = 499
"""What log and metric say when the client did not wait for the answer; nobody receives it."""

T = TypeVar("T")

Passthrough = Callable[[str, Scope, Send], Coroutine[Any, Any, int]]
"""Sends a request on to the real metadata service, at this path, and its answer back; returns the status."""


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """How the operator wants it."""

    metadata_header_required: bool = True
    block_instance_metadata: bool = False
    retry_after_header: bool = False


@dataclass(frozen=True, slots=True)
class ApiPorts:
    """What the API needs from outside."""

    clock: Clock
    meter: Meter


@dataclass(slots=True)
class _Outcome:
    """What the log line and the metric say about a request."""

    status: int
    pod: str = ""
    namespace: str = ""
    resource: str = ""
    detail: str = ""


class MetadataEndpoint:
    """The ASGI endpoint. A pod is known by its socket's address alone; no header says who it is."""

    def __init__(self, service: TokenService, passthrough: Passthrough, settings: ApiSettings, ports: ApiPorts) -> None:
        self._service = service
        self._passthrough = passthrough
        self._settings = settings
        self._clock = ports.clock
        self._meter = ports.meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        began_s = self._clock.monotonic_s()
        path = _path(scope)
        if path.route is Route.TOKEN:
            outcome = await self._token(scope, receive, send)
            self._record(scope, path.canonical, outcome, self._clock.monotonic_s() - began_s)
            return
        refusal = self._refusal(path, scope)
        if refusal is None:
            await _while_connected(self._passthrough(path.canonical, scope, send), receive)
            return
        log.warning(
            "refused req.method=%s reg.path=%r req.remote=%s, error: %s",
            scope["method"],
            scope["path"],
            _address(scope),
            refusal,
        )
        await send_answer(send, denial(refusal))

    async def _token(self, scope: Scope, receive: Receive, send: Send) -> _Outcome:
        request = self._request(scope)
        if isinstance(request, Explanation):
            return await self._deny(send, Denied(request), "")
        try:
            result: Granted | Denied | None = self._service.at_once(_address(scope), request)
            if result is None:
                result = await _while_connected(self._service.answer(_address(scope), request), receive)
        except PodIdentityError as error:
            answer = failure(error)
            await send_answer(send, answer)
            return _Outcome(answer.status, resource=request.resource, detail=f"error={str(error)!r}")
        if result is None:
            return _Outcome(CLIENT_GONE, resource=request.resource, detail="error='the client hung up'")
        if isinstance(result, Denied):
            return await self._deny(send, result, request.resource)
        await send_answer(send, token_answer(result.token, self._clock.wall_s()))
        return _granted(result, request)

    async def _deny(self, send: Send, denied: Denied, resource: str) -> _Outcome:
        answer = denial(denied.explanation, retry_after_header=self._settings.retry_after_header)
        await send_answer(send, answer)
        namespace, pod = (denied.pod.namespace, str(denied.pod.key)) if denied.pod else ("", "")
        return _Outcome(answer.status, pod, namespace, resource, f"error={str(denied.explanation)!r}")

    def _request(self, scope: Scope) -> TokenRequest | Explanation:
        return self._header_fault(scope) or _method_fault(scope) or parse_query(scope["query_string"].decode("latin-1"))

    def _refusal(self, path: MetadataPath, scope: Scope) -> Explanation | None:
        """Why a request that is not for a token is not sent on; None when it is."""
        if path.route is Route.INVALID:
            return because(Reason.PATH_REFUSED)
        if path.route is Route.INSTANCE and self._settings.block_instance_metadata:
            return because(Reason.INSTANCE_BLOCKED)
        if (fault := self._header_fault(scope)) is not None:
            return fault
        if path.route not in (Route.INSTANCE, Route.PASSTHROUGH):
            return because(Reason.NO_SUCH_PATH, path=scope["path"])
        return _method_fault(scope)

    def _header_fault(self, scope: Scope) -> Explanation | None:
        """IMDS's two conditions. `Metadata: true` keeps out whoever can only make a pod fetch a URL."""
        marked = not self._settings.metadata_header_required
        seen = False
        for name, value in scope["headers"]:
            if name == b"metadata" and not seen:
                seen = True
                marked = marked or value == b"true"
            elif name == b"x-forwarded-for":
                return because(Reason.FORWARDED)
        return None if marked else because(Reason.HEADER_MISSING)

    def _record(self, scope: Scope, path: str, outcome: _Outcome, took_s: float) -> None:
        self._meter.observe(
            "nmi_operations_duration_seconds",
            took_s,
            namespace=outcome.namespace,
            operation_type=path,
            resource=outcome.resource,
            status_code=str(outcome.status),
        )
        log.log(
            logging.INFO if outcome.status == 200 else logging.ERROR,
            "status (%d) took %d ns for req.method=%s reg.path=%s req.remote=%s pod=%s resource=%s %s",
            outcome.status,
            took_s * 1e9,
            scope["method"],
            path,
            _address(scope),
            outcome.pod or "-",
            outcome.resource or "-",
            outcome.detail,
        )


def create_app(service: TokenService, passthrough: Passthrough, settings: ApiSettings, ports: ApiPorts) -> FastAPI:
    """Build the application."""
    return _Application(MetadataEndpoint(service, passthrough, settings, ports))


class _Application(FastAPI):
    """FastAPI's own stack costs nearly as much as the whole answer to a warm request, so tokens go past it."""

    def __init__(self, endpoint: MetadataEndpoint) -> None:
        super().__init__(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
        self.router.default = self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and _path(scope).route is Route.TOKEN:
            await self._endpoint(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def _path(scope: Scope) -> MetadataPath:
    return classify(scope["raw_path"].decode("latin-1"))


async def _while_connected(work: Coroutine[Any, Any, T], receive: Receive) -> T | None:
    """Return what *work* returns, or None when the client has hung up: then nothing more is done for it."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_hung_up(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _granted(granted: Granted, request: TokenRequest) -> _Outcome:
    pod, identity = granted.pod, granted.identity
    detail = (
        f"identity={identity.key} clientid={redact(identity.client_id)}"
        if identity
        else f"exception identity={request.selector or 'of the node'}"
    )
    return _Outcome(200, str(pod.key), pod.namespace, request.resource, detail)


def _method_fault(scope: Scope) -> Explanation | None:
    method: str = scope["method"]
    return None if method == "GET" else because(Reason.METHOD_REFUSED, method=method)


def _address(scope: Scope) -> str:
    """The peer's address; one from an IPv4 socket keeps its IPv4 form on a dual-stack listener."""
    client = scope["client"]
    return str(client[0]).removeprefix("::ffff:") if client else ""

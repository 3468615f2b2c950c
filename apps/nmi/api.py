"""NMI's HTTP API: what a pod finds at 169.254.169.254, and what programs of the node find at /host/token.

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

from apps.limited_http import IN_ONE_WRITE, InOneWrite
from apps.nmi.answers import (
    Answer,
    denial,
    explained,
    failure,
    host_token_answer,
    not_allowed,
    send_answer,
    token_answer,
)
from apps.nmi.audit import Record, Write, note
from apps.nmi.warm import Asked, Warm, WarmAnswers
from apps.serving import Receive, Scope, Send
from podidentity_core.errors import PodIdentityError
from podidentity_core.metadata_path import MetadataPath, Route, classify
from podidentity_core.model import Key
from podidentity_core.ports import Clock, Meter
from podidentity_core.reasons import Explanation, Reason, because
from podidentity_core.services.tokens import Denied, Granted, TokenService
from podidentity_core.token_request import parse_query

log = logging.getLogger(__name__)

_TOKEN_METHODS = ("GET",)
_PASSED_METHODS = ("GET", "HEAD")

_SHOWN_CHARS = 200
"""As much of what a pod has made up goes into the log."""

T = TypeVar("T")

Passthrough = Callable[[str, Scope, Send], Coroutine[Any, Any, int]]
"""Sends a request on to the real metadata service, at this path, and its answer back; returns the status."""


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """How the operator wants it."""

    metadata_header_required: bool = True
    block_instance_metadata: bool = False
    retry_after_header: bool = False
    host_token: bool = True


@dataclass(frozen=True, slots=True)
class ApiPorts:
    """What the API needs from outside; *audit* takes a line for each token request."""

    clock: Clock
    meter: Meter
    audit: Write


class MetadataEndpoint:
    """The ASGI endpoint. A pod is known by its socket's address alone; no header says who it is."""

    def __init__(self, service: TokenService, passthrough: Passthrough, settings: ApiSettings, ports: ApiPorts) -> None:
        self._service = service
        self._passthrough = passthrough
        self._settings = settings
        self._clock = ports.clock
        self._meter = ports.meter
        self._audit = ports.audit
        self._warm = WarmAnswers(service, ports.clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        path = _path(scope)
        if path.route is Route.TOKEN:
            await self._recorded(self._token, path, scope, receive, send)
        elif path.route is Route.HOST_TOKEN and self._settings.host_token:
            await self._recorded(self._host_token, path, scope, receive, send)
        else:
            await self._other(path, scope, receive, send)

    def warm(self, scope: Scope) -> Warm | None:
        """The answer to a request that was answered a moment ago, if it is still good."""
        if scope["method"] != "GET" or self._header_fault(scope) is not None:
            return None
        return self._warm.get(_asked(scope))

    async def send_warm(self, warm: Warm, scope: Scope, send: Send) -> None:
        """Send it, and record it as any other."""
        began_s = self._clock.monotonic_s()
        in_one_write: InOneWrite | None = scope.get("extensions", {}).get(IN_ONE_WRITE)
        if in_one_write is None or not in_one_write(warm.head, warm.body["body"]):
            await send(warm.start)
            await send(warm.body)
        self._meter.count("nmi_token_cache_count", result="hit")
        note(warm.record, self._clock.monotonic_s() - began_s, self._meter, self._audit)

    async def _recorded(
        self,
        answer: Callable[[Scope, Receive, Record], Coroutine[Any, Any, Answer | None]],
        path: MetadataPath,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        began_s = self._clock.monotonic_s()
        record = Record(scope["method"], path.canonical, _address(scope))
        try:
            found = await answer(scope, receive, record)
        except PodIdentityError as error:
            found, record.why = failure(error), explained(error)
        if found is not None:
            record.status = found.status
            await send_answer(send, found)
        note(record, self._clock.monotonic_s() - began_s, self._meter, self._audit)

    async def _token(self, scope: Scope, receive: Receive, record: Record) -> Answer | None:
        """The answer to a pod; None when it did not wait for it."""
        fault = self._header_fault(scope)
        if fault is None and scope["method"] not in _TOKEN_METHODS:
            return _wrong_method(record, _TOKEN_METHODS)
        request = fault or parse_query(scope["query_string"].decode("latin-1"))
        if isinstance(request, Explanation):
            return _refused(record, Denied(request))
        record.request = request
        if (granted := self._service.at_once(record.remote, request)) is not None:
            _grant(record, granted)
            answer = token_answer(granted.tokens, self._clock.wall_s())
            record.status = answer.status
            self._warm.put(_asked(scope), answer, record)
            return answer
        result = await _while_connected(self._service.answer(record.remote, request), receive)
        if isinstance(result, Granted):
            _grant(record, result)
            return token_answer(result.tokens, self._clock.wall_s())
        if result is None:
            return None
        return _refused(record, result, retry_after_header=self._settings.retry_after_header)

    async def _host_token(self, scope: Scope, receive: Receive, record: Record) -> Answer | None:
        """The answer to a program of the node that names a pod. It needs no `Metadata` header."""
        if not _is_local(record.remote):
            return _refused(record, Denied(because(Reason.NOT_FROM_HOST)))
        if scope["method"] not in _TOKEN_METHODS:
            return _wrong_method(record, _TOKEN_METHODS)
        pod = Key(_header(scope, b"podns"), _header(scope, b"podname"))
        if not pod.namespace or not pod.name:
            return _refused(record, Denied(because(Reason.POD_NOT_NAMED)))
        request = parse_query(scope["query_string"].decode("latin-1"))
        if isinstance(request, Explanation):
            return _refused(record, Denied(request))
        record.request = request
        result = await _while_connected(self._service.answer_host(record.remote, pod, request), receive)
        if isinstance(result, Granted):
            _grant(record, result)
            client_id = result.identity.client_id if result.identity else ""
            return host_token_answer(result.tokens[0], client_id, self._clock.wall_s())
        return None if result is None else _refused(record, result)

    async def _other(self, path: MetadataPath, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(path, scope)
        if refusal is None and scope["method"] in _PASSED_METHODS:
            await _while_connected(self._passthrough(path.canonical, scope, send), receive)
            return
        answer = not_allowed(scope["method"], _PASSED_METHODS) if refusal is None else denial(refusal)
        log.warning(
            "refused req.method=%s reg.path=%r req.remote=%s, error: %s",
            scope["method"][:_SHOWN_CHARS],
            scope["path"][:_SHOWN_CHARS],
            _address(scope),
            refusal or "method not allowed",
        )
        await send_answer(send, answer)

    def _refusal(self, path: MetadataPath, scope: Scope) -> Explanation | None:
        """Why a request that is not for a token is not sent on, whatever its method; None when it may be."""
        if path.route is Route.INVALID:
            return because(Reason.PATH_REFUSED)
        if path.route is Route.INSTANCE and self._settings.block_instance_metadata:
            return because(Reason.INSTANCE_BLOCKED)
        if (fault := self._header_fault(scope)) is not None:
            return fault
        if path.route not in (Route.INSTANCE, Route.PASSTHROUGH):
            return because(Reason.NO_SUCH_PATH, path=scope["path"])
        return None

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
        if scope["type"] == "http":
            if (warm := self._endpoint.warm(scope)) is not None:
                await self._endpoint.send_warm(warm, scope, send)
                return
            if _path(scope).route is Route.TOKEN:
                await self._endpoint(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def _asked(scope: Scope) -> Asked:
    return _address(scope), scope["raw_path"], scope["query_string"]


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


def _grant(record: Record, granted: Granted) -> None:
    record.pod, record.identity, record.kept = granted.pod, granted.identity, granted.kept


def _refused(record: Record, denied: Denied, *, retry_after_header: bool = False) -> Answer:
    record.pod, record.why = denied.pod, denied.explanation
    return denial(denied.explanation, retry_after_header=retry_after_header)


def _wrong_method(record: Record, allowed: tuple[str, ...]) -> Answer:
    record.why = because(Reason.METHOD_REFUSED, method=record.method)
    return not_allowed(record.method, allowed)


def _address(scope: Scope) -> str:
    """The peer's address; one from an IPv4 socket keeps its IPv4 form on a dual-stack listener."""
    client = scope["client"]
    return str(client[0]).removeprefix("::ffff:") if client else ""


def _is_local(address: str) -> bool:
    """Whether a program of the node asks: what a pod sends to the metadata address keeps the pod's own address."""
    return address in ("127.0.0.1", "::1")


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")

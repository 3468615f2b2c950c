"""What NMI says, byte for byte: tokens in IMDS's shape, and errors that Azure SDKs print.

Sources: the metadata service itself for the shapes; aad-pod-identity pkg/nmi/server/server.go for the statuses that
its users depend on (404 after the wait, 503 and `Retry-After: 20` with --set-retry-after-header).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from apps.serving import Send
from podidentity_core.errors import PodIdentityError, RefusedError, Throttled, TokenRefused
from podidentity_core.ports import AccessToken
from podidentity_core.reasons import Explanation, Reason, because

Headers = tuple[tuple[bytes, bytes], ...]
_JSON_TYPE = (b"content-type", b"application/json; charset=utf-8")


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """A whole HTTP answer. The body may hold a token, so it is not shown."""

    status: int
    body: bytes
    headers: Headers = (_JSON_TYPE,)


def token_answer(tokens: Sequence[AccessToken], now_s: float) -> Answer:
    """Answer with a token as IMDS does; with several, as for auxiliary tenants, with an array of such objects."""
    bodies = [token_body(token, now_s) for token in tokens]
    return Answer(200, bodies[0] if len(bodies) == 1 else b"[%b]" % b",".join(bodies))


def host_token_answer(token: AccessToken, client_id: str, now_s: float) -> Answer:
    """Answer a program of the node (pkg/nmi/server/server.go:256): one token, and whose it is."""
    return Answer(200, b'{"token":%b,"clientid":%b}' % (token_body(token, now_s), json.dumps(client_id).encode()))


def token_body(token: AccessToken, now_s: float) -> bytes:
    """A token in IMDS's shape: all values strings, `expires_in` as of now and before `expires_on`."""
    begin, end = _around_lifetime(token)
    lifetime_s = max(0, int(token.expires_on_s - now_s))
    return b'%b"expires_in":"%d","expires_on":"%d"%b' % (begin, lifetime_s, int(token.expires_on_s), end)


@lru_cache(maxsize=1024)
def _around_lifetime(token: AccessToken) -> tuple[bytes, bytes]:
    """The parts before and after what changes from answer to answer."""
    fields = dict(token.fields)
    first = {"access_token": token.token}
    if "client_id" in fields:
        first["client_id"] = fields.pop("client_id")
    begin = json.dumps(first, separators=(",", ":"))[:-1] + ","
    end = json.dumps(fields, separators=(",", ":"))[1:]
    return begin.encode(), (end if end == "}" else "," + end).encode()


@dataclass(frozen=True, slots=True)
class _Shape:
    status: int
    error: str = "invalid_request"
    headers: Headers = ()


_SOON: Headers = ((b"retry-after", b"1"),)
_AGAIN = _Shape(503, "temporarily_unavailable", _SOON)
_SHAPES: Mapping[Reason, _Shape] = {
    Reason.NOT_ASSIGNED_YET: _Shape(404, "identity_not_assigned"),
    Reason.NOT_READ_YET: _AGAIN,
    Reason.ENDING: _AGAIN,
    Reason.TOO_MANY_WAIT: _Shape(429, "too_many_requests", _SOON),
    Reason.HEADER_MISSING: _Shape(400),
    Reason.RESOURCE_MISSING: _Shape(400),
    Reason.BAD_QUERY: _Shape(400),
    Reason.TWO_SELECTORS: _Shape(400),
    Reason.UNKNOWN_POD: _Shape(404, "pod_not_found"),
    Reason.AMBIGUOUS_POD: _Shape(503, "pod_not_found"),
    Reason.NO_IDENTITY: _Shape(404, "identity_not_found"),
    Reason.NO_SUCH_IDENTITY: _Shape(404, "identity_not_found"),
    Reason.NO_CLIENT_ID: _Shape(403, "identity_not_usable"),
    Reason.PATH_REFUSED: _Shape(400),
    Reason.NO_SUCH_PATH: _Shape(404, "Not found"),
    Reason.INSTANCE_BLOCKED: _Shape(403, "access_denied"),
    Reason.UNSUPPORTED_KIND: _Shape(403, "identity_not_usable"),
    Reason.CREDENTIAL_UNUSABLE: _Shape(403, "identity_not_usable"),
    Reason.NOT_FROM_HOST: _Shape(403, "access_denied"),
    Reason.POD_NOT_NAMED: _Shape(400),
    Reason.UPSTREAM_AWAY: _Shape(503, "temporarily_unavailable"),
    Reason.UPSTREAM_BUSY: _Shape(429, "too_many_requests"),
    Reason.METHOD_REFUSED: _Shape(405),
}
_MAY_COME = {Reason.NOT_ASSIGNED_YET, Reason.NO_IDENTITY, Reason.NO_SUCH_IDENTITY}
_WORD_FOR_WORD = {Reason.HEADER_MISSING, Reason.RESOURCE_MISSING}
"""SDKs and people compare these with IMDS's own text."""

_FORWARDED = (
    b'<?xml version="1.0" encoding="utf-8"?><Error><Code>InvalidHeaderValue</Code><Message>The value provided for one '
    b"of the HTTP headers was not in the correct format.</Message><Details>%b</Details></Error>"
)


def denial(explanation: Explanation, *, retry_after_header: bool = False) -> Answer:
    """Answer with an error. With *retry_after_header*, what may still come is a 503 that names when to ask again."""
    reason = explanation.reason
    if reason is Reason.FORWARDED:
        return Answer(400, _FORWARDED % explanation.message.encode(), ((b"content-type", b"application/xml"),))
    shape = _SHAPES[reason]
    text = explanation.message if reason in _WORD_FOR_WORD else str(explanation)
    body = json.dumps({"error": shape.error, "error_description": text}, separators=(",", ":")).encode()
    if retry_after_header and reason in _MAY_COME:
        return Answer(503, body, (_JSON_TYPE, (b"retry-after", b"20")))
    return Answer(shape.status, body, (_JSON_TYPE, *shape.headers))


def not_allowed(method: str, allowed: Sequence[str]) -> Answer:
    """Answer to a method that this path does not know."""
    answer = denial(because(Reason.METHOD_REFUSED, method=method))
    return replace(answer, headers=(*answer.headers, (b"allow", ", ".join(allowed).encode())))


def explained(error: PodIdentityError) -> Explanation:
    """Why a token could not be had, for logs and metrics, and for the pod unless the service's own words are there."""
    problem = str(error)
    match error:
        case TokenRefused():
            return because(Reason.UPSTREAM_REFUSED, problem=problem)
        case RefusedError():
            return because(Reason.CREDENTIAL_UNUSABLE, problem=problem)
        case Throttled():
            return because(Reason.UPSTREAM_BUSY, problem=problem)
        case _:
            return because(Reason.UPSTREAM_AWAY, problem=problem)


def failure(error: PodIdentityError) -> Answer:
    """Answer for a token service that said no (its own words), asks for patience, or did not answer."""
    if isinstance(error, TokenRefused):
        headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in error.headers)
        return Answer(error.status, error.body, headers)
    answer = denial(explained(error))
    if isinstance(error, Throttled):
        wait_s = str(max(1, math.ceil(error.retry_after_s))).encode()
        return replace(answer, headers=(*answer.headers, (b"retry-after", wait_s)))
    return answer


def messages(answer: Answer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a whole answer, with its length, as the two messages of ASGI."""
    headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
    start = {"type": "http.response.start", "status": answer.status, "headers": headers}
    return start, {"type": "http.response.body", "body": answer.body}


async def send_answer(send: Send, answer: Answer) -> None:
    """Send a whole answer."""
    start, body = messages(answer)
    await send(start)
    await send(body)

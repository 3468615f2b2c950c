"""What NMI says, byte for byte: tokens in IMDS's shape, and errors that Azure SDKs print.

Sources: the metadata service itself for the shapes; aad-pod-identity pkg/nmi/server/server.go for the statuses that
its users depend on (404 after the wait, 503 and `Retry-After: 20` with --set-retry-after-header).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from apps.serving import Send
from podidentity_core.errors import PodIdentityError, Throttled, TokenRefused
from podidentity_core.ports import AccessToken
from podidentity_core.reasons import Explanation, Reason, because

JSON = b"application/json; charset=utf-8"
Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """A whole HTTP answer. The body may hold a token, so it is not shown."""

    status: int
    body: bytes
    headers: Headers = ((b"content-type", JSON),)


def token_answer(token: AccessToken, now_s: float) -> Answer:
    """Answer with *token* as IMDS does: all values strings, `expires_in` as of now and before `expires_on`."""
    begin, end = _around_lifetime(token)
    lifetime_s = max(0, int(token.expires_on_s - now_s))
    return Answer(200, b'%b"expires_in":"%d","expires_on":"%d"%b' % (begin, lifetime_s, int(token.expires_on_s), end))


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


_SHAPES: Mapping[Reason, _Shape] = {
    Reason.NOT_ASSIGNED_YET: _Shape(404, "identity_not_assigned"),
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
    Reason.UPSTREAM_AWAY: _Shape(503, "temporarily_unavailable"),
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
        return Answer(503, body, ((b"content-type", JSON), (b"retry-after", b"20")))
    if reason is Reason.METHOD_REFUSED:
        return Answer(shape.status, body, ((b"content-type", JSON), (b"allow", b"GET")))
    return Answer(shape.status, body)


def failure(error: PodIdentityError) -> Answer:
    """Answer for a token service that said no (its own words), asks for patience, or did not answer."""
    if isinstance(error, TokenRefused):
        headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in error.headers)
        return Answer(error.status, error.body, headers)
    answer = denial(because(Reason.UPSTREAM_AWAY, problem=str(error)))
    if isinstance(error, Throttled):
        wait_s = str(max(1, math.ceil(error.retry_after_s))).encode()
        return Answer(429, answer.body, (*answer.headers, (b"retry-after", wait_s)))
    return answer


async def send_answer(send: Send, answer: Answer) -> None:
    """Send a whole answer, with its length."""
    headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})

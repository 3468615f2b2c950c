"""What the metadata service and Entra ID have in common in how they answer a token request.

*service* is the name of whoever answered, in messages. No message has anything of a body with status 200, since some
of it may be a token.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import httpx

from podidentity_core.errors import TransientError

LARGEST_ANSWER_BYTES = 2**18
"""A token with the most claims that Entra puts into one is a tenth of this."""

UNPACKED = {"Accept": "application/json", "Accept-Encoding": "identity"}
"""Headers of a request. What is not packed cannot unpack to more than the limit."""

_FOR_CALLERS = frozenset({"content-type", "server", "x-ms-request-id", "www-authenticate", "retry-after"})
_GO_DATE = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4}) (\d{1,2}):(\d{2}):(\d{2})(?: ([AP]M))? \+00:00")
"""`1/2/2006 15:04:05 PM +00:00`, with or without the marker. Source: go-autorest autorest/adal/token.go:86."""


async def read_body(response: httpx.Response, service: str) -> bytes:
    """Return the body of a streamed answer.

    Raises:
        TransientError: when it is too large to be one of a token service.
        httpx.HTTPError: when it breaks off.
    """
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > LARGEST_ANSWER_BYTES:
            raise TransientError(f"{service} answered with more than {LARGEST_ANSWER_BYTES} bytes, so that is no token")
    return bytes(body)


def headers_for_callers(response: httpx.Response) -> tuple[tuple[str, str], ...]:
    """Return those headers of an answer that mean something to whoever wants the token, names in lower case.

    Not what describes the connection, the moment or the framing: whoever passes the answer on has its own.
    """
    raw = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.headers.raw)
    return tuple((name, value) for name, value in raw if name in _FOR_CALLERS)


def members(body: bytes) -> Mapping[str, Any]:
    """Return the members of a JSON object; none when *body* is something else."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def access_token(answer: Mapping[str, Any], service: str) -> str:
    """Return the token itself. Raises `TransientError` when there is none."""
    token = answer.get("access_token")
    if not isinstance(token, str) or not token:
        raise TransientError(f"{service} answered 200, but without an access_token")
    return token


def expiry_s(answer: Mapping[str, Any], service: str, *, now_s: float) -> float:
    """Return when the token dies, in seconds since the epoch.

    `expires_on` is such a number, as a number or as text, or one of Go's dates; where it is missing, `expires_in`
    counts from *now_s*. Raises `TransientError` when neither can be read.
    """
    stated = answer.get("expires_on")
    try:
        if isinstance(stated, str) and (date := _GO_DATE.fullmatch(stated)):
            return _date_s(date)
        found = float(stated) if stated not in (None, "") else now_s + float(answer["expires_in"])
    except (KeyError, TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise TransientError(f"{service} answered 200, but the token's expiry is neither number nor date") from None
    return found


def as_text(value: object) -> str | None:
    """Return a member's value as the metadata service writes it: everything is text. None for what is neither."""
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def _date_s(date: re.Match[str]) -> float:
    month, day, year, hour, minute, second = (int(part) for part in date.groups()[:6])
    # As Go reads it: the hour may have 24 forms, and the marker changes the ambiguous ones only.
    if date[7] == "PM" and hour < 12:
        hour += 12
    elif date[7] == "AM" and hour == 12:
        hour = 0
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()

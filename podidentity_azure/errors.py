"""What Resource Manager complains of, and which error of the core that is.

| the answer                                               | becomes                                       |
|----------------------------------------------------------|-----------------------------------------------|
| 429; 408 and 5xx with Retry-After                        | `Throttled`                                   |
| 409, 412, an operation that a newer write replaced       | `Conflict`                                    |
| 409 because of a lock or a host that is being deleted    | `RefusedError`                                |
| FailedIdentityOperation, by the status that is inside it | `IdentitiesRefused`, `Conflict`, transient    |
| LinkedAuthorizationFailed, 400: names ids that were sent | `IdentitiesRefused` with these ids            |
| 401, 403                                                 | `PermissionRefused`, an expired token transient |
| 404                                                      | `NotFound`                                    |
| 408, 5xx, an operation that failed for other reasons     | `TransientError`                              |
| any other 4xx                                            | `RefusedError`                                |
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from podidentity_core.errors import (
    Conflict,
    IdentitiesRefused,
    NotFound,
    PermissionRefused,
    PodIdentityError,
    RefusedError,
    Throttled,
    TransientError,
)
from podidentity_core.resource_ids import IdentityResource

THROTTLED_S = 15.0
"""The wait after a 429 that names none: what a host's quota of four writes a minute needs for the next."""

LONGEST_RETRY_AFTER_S = 3600.0
"""No longer wait is believed: Azure's are up to 20 minutes, and a slip of a date would stop a host for good."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong, in the server's words. *status* is None for an operation that was accepted and then failed."""

    status: int | None
    code: str
    text: str
    retry_after_s: float | None = None

    @classmethod
    def of_body(
        cls, body: object, *, status: int | None = None, retry_after_s: float | None = None, default: str = ""
    ) -> Fault:
        """Read an error of Resource Manager, or of Entra ID. Some throttling answers lack the outer `error`."""
        inner = body.get("error", body) if isinstance(body, Mapping) else None
        if isinstance(inner, str) and isinstance(body, Mapping):
            return cls(status, inner, f"{inner}: {body.get('error_description', default)}", retry_after_s)
        code = str(inner.get("code") or "") if isinstance(inner, Mapping) else ""
        return cls(status, code, "; ".join(_messages(inner)) or default, retry_after_s)


def _messages(error: object) -> Iterator[str]:
    if not isinstance(error, Mapping):
        return
    if error.get("code") or error.get("message"):
        yield f"{error.get('code')}: {error.get('message')}"
    for detail in error.get("details") or ():
        yield from _messages(detail)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that Retry-After asks for, be it a number or a date; None without a usable one.

    A date counts from the answer's own, so that no clock of ours needs to agree. Never more than
    `LONGEST_RETRY_AFTER_S`. Header names are in lower case.
    """
    value = headers.get("retry-after", "")
    try:
        if value.strip().isdigit():
            return min(float(value), LONGEST_RETRY_AFTER_S)
        left = parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))
    except (TypeError, ValueError):
        return None
    return min(max(0.0, left.total_seconds()), LONGEST_RETRY_AFTER_S)


def named_identities(text: str, sent: Collection[IdentityResource]) -> frozenset[str]:
    """Return which of the ids that were *sent* the server's *text* names, as they were sent.

    Azure changes the letter case and wraps errors in errors, so no pattern finds every id that is allowed; but only
    an id that was sent can be meant. Longer ones are looked for first, and what is found is taken out: an id that
    another one begins with is not found in it.
    """
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text).lower()
    named = set()
    for resource in sorted(sent, key=lambda resource: len(resource.key), reverse=True):
        # A name goes on with these; what ends it is a quote, a comma, a blank or the text's end.
        rest = re.sub(re.escape(resource.key) + r"(?![\w-])", " ", text)
        if rest != text:
            named.add(resource.text)
        text = rest
    return frozenset(named)


def core_error(fault: Fault, action: str, sent: Collection[IdentityResource] = ()) -> PodIdentityError:
    """Return the core's error for *fault* of *action*, which named the identities in *sent*."""
    message = f"{action}: {fault.text}"
    if fault.status == 429:
        return Throttled(message, retry_after_s=THROTTLED_S if fault.retry_after_s is None else fault.retry_after_s)
    named = named_identities(fault.text, sent)
    if fault.code == "FailedIdentityOperation":
        return _identity_error(fault, message, named)
    if named and (fault.status == 400 or fault.code == "LinkedAuthorizationFailed"):
        return IdentitiesRefused(message, resource_ids=named)
    if fault.code == "OperationPreempted":
        return Conflict(message)
    return _by_status(fault, message)


_INNER_STATUS = re.compile(r"Status: '(\w+)'")
_BUSY = (
    "TooManyRequests",
    "RequestTimeout",
    "InternalServerError",
    "BadGateway",
    "ServiceUnavailable",
    "GatewayTimeout",
)


def _identity_error(fault: Fault, message: str, named: frozenset[str]) -> PodIdentityError:
    """The code stands for whatever the identity service said; only the status inside tells a typo from a busy hour."""
    found = _INNER_STATUS.search(fault.text)
    inner = found[1] if found else ""
    if inner in _BUSY:
        return TransientError(message)
    return Conflict(message) if inner == "Conflict" else IdentitiesRefused(message, resource_ids=named)


def _by_status(fault: Fault, message: str) -> PodIdentityError:
    match fault.status:
        case 409 if fault.code == "ScopeLocked" or "marked for deletion" in fault.text:
            return RefusedError(message)
        case 409 | 412:
            return Conflict(message)
        case 401 if fault.code in ("ExpiredAuthenticationToken", "InvalidAuthenticationToken"):
            return TransientError(message)  # the SDK drops the token on a 401, so that the next call has a new one
        case 401 | 403:
            return PermissionRefused(message)
        case 404:
            return NotFound(message)
        case int(status) if 400 <= status < 500 and status != 408:
            return RefusedError(message)
        case _ if fault.retry_after_s is not None:
            return Throttled(message, retry_after_s=fault.retry_after_s)
        case _:
            return TransientError(message)

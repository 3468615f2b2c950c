"""What Entra ID answers: a token in the shape of the metadata service, or an error of the core.

| the answer | becomes |
|---|---|
| 200 with a token | `AccessToken` |
| 429; a code that stands for throttling; 408, 5xx and transient codes with Retry-After | `Throttled` |
| 408, 5xx, a transient code | `Passing` |
| 400, 401 or 403 with `invalid_client` | `CredentialRefused` |
| 400, 401 or 403 with another error | `TokenRefused` |
| 3xx, any other 4xx | `RefusedError`: that is no token endpoint |
| anything else | `TransientError` |

Codes go before texts, which change. Source: Entra's reference of error codes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote_plus

from podidentity_azure.asking import Passing
from podidentity_azure.errors import retry_after_s
from podidentity_azure.token_answers import access_token, as_text, expiry_s, members
from podidentity_core.errors import PodIdentityError, RefusedError, Throttled, TokenRefused, TransientError
from podidentity_core.model import Identity
from podidentity_core.ports import AccessToken

_SERVICE = "Entra ID"

THROTTLED_S = 5.0
"""The wait after throttling that names none, as Microsoft's own libraries have it."""

_TRANSIENT_CODES = frozenset({90012, 90024, 90033, 90061})
_THROTTLING_CODES = frozenset({50196, 90055})
_MOST_CHARS = 1000  # of somebody else's text


class CredentialRefused(TokenRefused):
    """Entra does not take the secret or the certificate, or no longer."""


def read_token(body: bytes, identity: Identity, resource: str, *, now_s: float) -> AccessToken:
    """Read what Entra answers with status 200 at wall time *now_s*. What it leaves out is filled in.

    Raises:
        TransientError: when it is no token. Nothing of the body is in the message, since some of it may be one.
    """
    answer = members(body)
    token = access_token(answer, _SERVICE)
    expires_on_s = expiry_s(answer, _SERVICE, now_s=now_s)
    left = str(max(0, int(expires_on_s - now_s)))
    fields = {
        "client_id": identity.client_id,
        "ext_expires_in": as_text(answer.get("ext_expires_in")) or left,
        "not_before": as_text(answer.get("not_before")) or str(int(now_s)),
        "resource": as_text(answer.get("resource")) or resource,
        "token_type": as_text(answer.get("token_type")) or "Bearer",
    }
    return AccessToken(token, expires_on_s, tuple(fields.items()))


def refusal(
    status: int, headers: Mapping[str, str], body: bytes, identity: Identity, *, withheld: Collection[str]
) -> PodIdentityError:
    """Return the error for an answer with another *status* than 200; header names are in lower case.

    *withheld* is what was sent and must not come back in any text.
    """
    answer = members(body)
    codes = _codes(answer)
    error = _safe(answer.get("error"), withheld)
    message = f"Entra ID answered {status} for AzureIdentity {identity.key}"
    if status == 429 or codes & _THROTTLING_CODES:
        return Throttled(message, retry_after_s=_wait_s(headers, THROTTLED_S))
    if status == 408 or status >= 500 or codes & _TRANSIENT_CODES or error == "temporarily_unavailable":
        wait_s = _wait_s(headers, 0.0)
        return Throttled(message, retry_after_s=wait_s) if wait_s else Passing(message)
    if status in (400, 401, 403) and error:
        told = _safe(answer.get("error_description"), withheld)
        kind = CredentialRefused if error == "invalid_client" else TokenRefused
        return kind(
            f"{message}: {error}: {told}",
            status=status,
            body=json.dumps({"error": error, "error_description": told}, separators=(",", ":")).encode(),
        )
    if 300 <= status < 500:
        return RefusedError(
            f"{message}, which a token endpoint does not; correct spec.adEndpoint, or look for a proxy in between"
        )
    return TransientError(message)


def _codes(answer: Mapping[str, Any]) -> frozenset[int]:
    codes = answer.get("error_codes")
    return frozenset(code for code in codes if isinstance(code, int)) if isinstance(codes, list) else frozenset()


def _wait_s(headers: Mapping[str, str], default_s: float) -> float:
    stated = retry_after_s(headers)
    return default_s if stated is None else stated


def _safe(text: object, withheld: Collection[str]) -> str:
    """Return *text* as far as it may be shown: bounded, and not if it repeats what was sent."""
    if not isinstance(text, str):
        return ""
    if any(spelling in text for value in withheld for spelling in (value, quote_plus(value))):
        return "(the answer repeats the credential, so it is left out)"
    return text[:_MOST_CHARS]

"""The ports `TokenSource` and `NodeTokenSource` on the node's instance metadata service (IMDS).

No vendor library is imported here, since NMI runs on every node and needs nothing else of Azure for this.
"""

from __future__ import annotations

import json
import math
import random
import ssl
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import httpx

from podidentity_azure.asking import Asking, Passing
from podidentity_core.errors import PodIdentityError, RefusedError, Throttled, TokenRefused, TransientError
from podidentity_core.model import Identity
from podidentity_core.ports import AccessToken, Clock, Meter, NodeTokenSource, TokenSource
from podidentity_core.token_request import Selector

TOKEN_PATH = "/metadata/identity/oauth2/token"  # noqa: S105  -- a path
API_VERSION = "2018-02-01"
"""The first version with managed identities, and the one that every client sends."""

MAX_CONNECTIONS = 5
"""IMDS serves five requests of a node at once and refuses more."""

CONNECT_LIMIT_S = 2.0
TOTAL_LIMIT_S = 10.0
"""How long one token may take, retries and waiting for a connection included."""

THROTTLED_S = 1.0
"""The wait after a 429 that names none: IMDS counts by the second."""


_FIELDS_APART = frozenset({"access_token", "expires_in", "expires_on"})


class ImdsTokens:
    """Fetches tokens from IMDS at *endpoint*. One for the whole process; close it after use.

    Proxies of the environment are not used: IMDS answers only the node itself, and a token would pass through them.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        clock: Clock,
        meter: Meter,
        agent: str,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._asking = Asking("the metadata service", TOTAL_LIMIT_S, clock, meter, chance)
        self._http = httpx.AsyncClient(
            base_url=endpoint.rstrip("/"),
            headers={"Metadata": "true", "User-Agent": agent},
            trust_env=False,
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
            timeout=httpx.Timeout(TOTAL_LIMIT_S, connect=CONNECT_LIMIT_S),
            # IMDS has no TLS: a context that trusts nobody spares each node the memory of all the authorities.
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )

    async def issue(self, identity: Identity, resource: str) -> AccessToken:
        """Fetch a token for *resource* on behalf of *identity*, which is on this node's host."""
        if not identity.client_id:
            # Without it IMDS would answer with the node's own identity.
            raise RefusedError(f"AzureIdentity {identity.key} has no clientID, so no token can be fetched for it")
        return await self._fetch("adal_token_msi_userassignedid", {"client_id": identity.client_id}, resource)

    async def issue_for_node(self, selector: Selector | None, resource: str) -> AccessToken:
        """Fetch a token of the identity that *selector* names on this node, or of the node's default one."""
        if selector is None:
            return await self._fetch("adal_token_msi", {}, resource)
        return await self._fetch("adal_token_msi_userassignedid", {selector.kind.value: selector.value}, resource)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _fetch(self, operation: str, selector: Mapping[str, str], resource: str) -> AccessToken:
        query = {"api-version": API_VERSION, **selector, "resource": resource}
        return await self._asking.measured(self._asking.persist(lambda: self._ask(query)), operation)

    async def _ask(self, query: Mapping[str, str]) -> AccessToken:
        try:
            response = await self._http.get(TOKEN_PATH, params=dict(query))
        except httpx.HTTPError as error:
            raise Passing(f"the metadata service did not answer: {type(error).__name__}: {error}") from error
        if response.status_code == 200:
            return read_token(response.content, now_s=self._clock.wall_s())
        raise _refusal(response)


def read_token(body: bytes, *, now_s: float) -> AccessToken:
    """Read what IMDS answers with status 200 at wall time *now_s*.

    Raises:
        TransientError: when it is no token. Nothing of the body is in the message, since some of it may be one.
    """
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise TransientError("the metadata service answered 200, but not with a JSON object") from None
    token = answer.get("access_token")
    if not isinstance(token, str) or not token:
        raise TransientError("the metadata service answered 200, but without an access_token")
    fields = ((key, _text(value)) for key, value in answer.items() if key not in _FIELDS_APART)
    return AccessToken(token, _expiry_s(answer, now_s), tuple((key, text) for key, text in fields if text is not None))


def _expiry_s(answer: Mapping[str, Any], now_s: float) -> float:
    """`expires_on` is seconds since the epoch; where it is missing, `expires_in` counts from now."""
    stated = answer.get("expires_on")
    try:
        expiry_s = float(stated) if stated not in (None, "") else now_s + float(answer["expires_in"])
    except (KeyError, TypeError, ValueError):
        expiry_s = math.nan
    if not math.isfinite(expiry_s):
        raise TransientError("the metadata service answered 200, but the token's expiry is no number") from None
    return expiry_s


def _text(value: object) -> str | None:
    """A member's value as IMDS itself writes it: everything is text. What is neither text nor number is left out."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value)


def _refusal(response: httpx.Response) -> PodIdentityError:
    status = response.status_code
    message = f"the metadata service answered {status}"
    if status in (400, 403):
        return TokenRefused(
            f"{message}: {response.text[:300]}",
            status=status,
            body=response.content,
            headers=(("content-type", response.headers.get("content-type", "application/json")),),
        )
    if status == 429:
        return Throttled(message, retry_after_s=_retry_after_s(response))
    return Passing(message) if status in (404, 410) or status >= 500 else TransientError(message)


def _retry_after_s(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdigit() else THROTTLED_S


if TYPE_CHECKING:
    _source: type[TokenSource] = ImdsTokens
    _node_source: type[NodeTokenSource] = ImdsTokens

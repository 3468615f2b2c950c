"""The ports `TokenSource` and `NodeTokenSource` on the node's instance metadata service (IMDS).

| the answer | becomes |
|---|---|
| 200 with a token | `AccessToken` |
| 400, 401, 403 | `TokenRefused`: its words are for the pod |
| 429; 404, 408, 410, 5xx with Retry-After | `Throttled`; after a 429 nobody asks until the wait is over |
| 404, 408, 410, 5xx, no connection, one that breaks | `Passing` |
| silence; anything else, which is not IMDS's | `TransientError` |

IMDS counts the calls of the whole node, so all of them take turns. No vendor library is imported here, since NMI runs
on every node and needs nothing else of Azure for this.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import httpx

from podidentity_azure.asking import Asking, Passing
from podidentity_azure.errors import retry_after_s
from podidentity_azure.token_answers import (
    UNPACKED,
    access_token,
    as_text,
    expiry_s,
    headers_for_callers,
    members,
    read_body,
)
from podidentity_azure.turns import Turns
from podidentity_core.errors import PodIdentityError, RefusedError, Throttled, TokenRefused, TransientError
from podidentity_core.model import Identity
from podidentity_core.ports import AccessToken, Clock, Meter, NodeTokenSource, TokenSource
from podidentity_core.token_request import Selector

TOKEN_PATH = "/metadata/identity/oauth2/token"  # noqa: S105  -- a path
API_VERSION = "2018-02-01"
"""The first version with managed identities, and the one that every client sends."""

AT_ONCE = 5
PER_SECOND = 20
"""What IMDS serves of a node's requests for tokens; it refuses more. Source: Microsoft's pages on IMDS."""

TURN_LIMIT_S = 15.0
"""After so long no call is begun any more for a token: whoever wants it may ask again, and is told when."""

CONNECT_LIMIT_S = 2.0
ANSWER_LIMIT_S = 10.0
"""How long one call may take. After silence there is no second one: it would hold a turn that others wait for."""

THROTTLED_S = 1.0
"""The wait after a 429 that names none: IMDS counts by the second."""

_SERVICE = "the metadata service"
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
        answer_limit_s: float = ANSWER_LIMIT_S,
    ) -> None:
        self._clock = clock
        self._answer_limit_s = answer_limit_s
        self._asking = Asking(_SERVICE, TURN_LIMIT_S + answer_limit_s, clock, meter, chance)
        self._turns = Turns(_SERVICE, clock, at_once=AT_ONCE, per_second=PER_SECOND)
        self._http = httpx.AsyncClient(
            base_url=endpoint.rstrip("/"),
            headers={"Metadata": "true", "User-Agent": agent, **UNPACKED},
            trust_env=False,
            limits=httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE),
            timeout=httpx.Timeout(answer_limit_s, connect=CONNECT_LIMIT_S),
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
        whose = tuple((name, value.lower()) for name, value in selector.items())
        last_turn_s = self._clock.monotonic_s() + TURN_LIMIT_S

        async def ask() -> AccessToken:
            async with self._turns.turn(whose, within_s=last_turn_s - self._clock.monotonic_s()):
                return await self._ask(query)

        return await self._asking.measured(self._asking.persist(ask, until_s=last_turn_s), operation)

    async def _ask(self, query: Mapping[str, str]) -> AccessToken:
        response, body = await self._answer(query)
        if response.status_code == 200:
            return read_token(body, now_s=self._clock.wall_s())
        error = _refusal(response, body)
        if isinstance(error, Throttled) and response.status_code == 429:
            self._turns.pause(error.retry_after_s)  # the limit is the node's, so the next call would fare no better
        raise error

    async def _answer(self, query: Mapping[str, str]) -> tuple[httpx.Response, bytes]:
        try:
            async with (
                asyncio.timeout(self._answer_limit_s),
                self._http.stream("GET", TOKEN_PATH, params=dict(query)) as response,
            ):
                return response, await read_body(response, _SERVICE)
        except (TimeoutError, httpx.ReadTimeout):
            raise TransientError(f"{_SERVICE} did not answer within {self._answer_limit_s:g} s") from None
        except httpx.HTTPError as error:
            raise Passing(f"{_SERVICE} did not answer: {type(error).__name__}: {error}") from error


def read_token(body: bytes, *, now_s: float) -> AccessToken:
    """Read what IMDS answers with status 200 at wall time *now_s*.

    Raises:
        TransientError: when it is no token. Nothing of the body is in the message, since some of it may be one.
    """
    answer = members(body)
    token = access_token(answer, _SERVICE)
    fields = ((key, as_text(value)) for key, value in answer.items() if key not in _FIELDS_APART)
    known = tuple((key, text) for key, text in fields if text is not None)
    return AccessToken(token, expiry_s(answer, _SERVICE, now_s=now_s), known)


def _refusal(response: httpx.Response, body: bytes) -> PodIdentityError:
    status = response.status_code
    message = f"{_SERVICE} answered {status}"
    if status in (400, 401, 403):
        return TokenRefused(
            f"{message}: {body[:300].decode(errors='replace')}",
            status=status,
            body=body,
            headers=headers_for_callers(response),
        )
    wait_s = retry_after_s(response.headers)
    if status == 429:
        return Throttled(message, retry_after_s=THROTTLED_S if wait_s is None else wait_s)
    if status in (404, 408, 410) or status >= 500:
        return Throttled(message, retry_after_s=wait_s) if wait_s else Passing(message)
    return TransientError(f"{message}, which it does not say about a token; look for a proxy in between")


if TYPE_CHECKING:
    _source: type[TokenSource] = ImdsTokens
    _node_source: type[NodeTokenSource] = ImdsTokens

"""The port `TokenSource` on Entra ID, for service principals with a secret or a certificate.

The endpoint of version 1 is asked, since it takes resources as pods name them and answers almost as the metadata
service does. Source: aad-pod-identity pkg/auth/auth.go:85-204. No vendor library is imported, nor cryptography before
the first certificate: NMI runs on every node, and few have such identities.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING

import httpx

from podidentity_azure.asking import Asking, Passing
from podidentity_azure.authority import PUBLIC_AUTHORITY, check_authority, token_url
from podidentity_azure.entra_answers import CredentialRefused, read_token, refusal
from podidentity_azure.secret_credentials import KEPT_S, Credential, SecretCredentials
from podidentity_azure.tls import ca_bundle, tls_context
from podidentity_azure.token_answers import UNPACKED, read_body
from podidentity_core.errors import RefusedError
from podidentity_core.model import Identity
from podidentity_core.ports import AccessToken, Clock, Meter, SecretReader, TokenSource

CONNECT_LIMIT_S = 5.0
TOTAL_LIMIT_S = 15.0
"""How long one token may take once its Secret has been read, retries included."""

MAX_CONNECTIONS = 10


@dataclass(frozen=True, slots=True)
class EntraRules:
    """What the operator wants: *authority* is the cloud's Entra ID, for identities that name none.

    *allow_any_endpoint*: send credentials wherever an AzureIdentity says. *allow_foreign_secrets*: let it use Secrets
    of other namespaces. Both give whoever may create an AzureIdentity a way to other people's Secrets.
    """

    authority: str = PUBLIC_AUTHORITY
    allow_any_endpoint: bool = False
    allow_foreign_secrets: bool = False
    secret_kept_s: float = KEPT_S


@dataclass(frozen=True, slots=True)
class _Question:
    url: httpx.URL
    identity: Identity
    resource: str


class EntraTokens:
    """Fetches tokens from Entra ID. One for the whole process; close it after use.

    Nothing is opened before the first call. Proxies of the environment are used, as the original does.

    Raises:
        ConfigurationError: when the certificates that *environ* names, or the cloud's authority, cannot be used.
    """

    def __init__(
        self,
        secrets: SecretReader,
        *,
        clock: Clock,
        meter: Meter,
        agent: str,
        environ: Mapping[str, str],
        rules: EntraRules | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._rules = rules or EntraRules()
        check_authority(self._rules.authority, allow_any=self._rules.allow_any_endpoint)
        self._clock = clock
        self._asking = partial(Asking, limit_s=TOTAL_LIMIT_S, clock=clock, meter=meter, chance=chance)
        self._agent = agent
        self._ca_bundle = ca_bundle(environ)
        # The system's own authorities take memory, so they are loaded when they are needed.
        self._tls = tls_context(self._ca_bundle) if self._ca_bundle else None
        self._http: httpx.AsyncClient | None = None
        self._credentials = SecretCredentials(
            secrets,
            clock=clock,
            meter=meter,
            allow_foreign=self._rules.allow_foreign_secrets,
            kept_s=self._rules.secret_kept_s,
        )

    async def issue(self, identity: Identity, resource: str) -> AccessToken:
        """Fetch a token for *resource* of the tenant `identity.tenant_id`; other tenants of it are calls of their own.

        Raises, besides what the port names, `RefusedError` when the object, its Secret or the operator's rules stand
        against it: with object, field and remedy.
        """
        if not identity.client_id:
            raise RefusedError(f"AzureIdentity {identity.key} has no clientID; set spec.clientID")
        url = token_url(identity, configured=self._rules.authority, allow_any=self._rules.allow_any_endpoint)
        credential = await self._credentials.of(identity)
        question = _Question(url, identity, resource)
        asking = self._asking(f"Entra ID at {url.host}")
        return await asking.measured(self._exchange(asking, question, credential), "adal_token")

    async def aclose(self) -> None:
        """Close all connections."""
        if self._http is not None:
            await self._http.aclose()

    async def _exchange(self, asking: Asking, question: _Question, credential: Credential) -> AccessToken:
        """Ask; if the credential is refused and the Secret holds another one by now, ask with that."""
        try:
            return await asking.persist(lambda: self._ask(question, credential))
        except CredentialRefused:
            newest = await self._credentials.newest(question.identity)
            if newest is credential:
                raise
        return await asking.persist(lambda: self._ask(question, newest))

    async def _ask(self, question: _Question, credential: Credential) -> AccessToken:
        identity, now_s = question.identity, self._clock.wall_s()
        proof = credential.proof(identity.client_id, str(question.url), now_s)
        form = {"client_id": identity.client_id, "grant_type": "client_credentials", "resource": question.resource}
        try:
            async with self._client().stream("POST", question.url, data={**form, **proof}) as response:
                body = await read_body(response, "Entra ID")
        except httpx.HTTPError as error:
            host = question.url.host
            raise Passing(f"Entra ID at {host} did not answer: {type(error).__name__}: {error}") from error
        if response.status_code == 200:
            return read_token(body, identity, question.resource, now_s=now_s)
        raise refusal(response.status_code, response.headers, body, identity, withheld=proof.values())

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            self._http = httpx.AsyncClient(
                headers={"User-Agent": self._agent, **UNPACKED},
                limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
                timeout=httpx.Timeout(TOTAL_LIMIT_S, connect=CONNECT_LIMIT_S),
                verify=self._tls or tls_context(""),
                # One tenant's cookies are no other's affair.
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                follow_redirects=False,  # the credential is for this endpoint alone
            )
        return self._http


if TYPE_CHECKING:
    _: type[TokenSource] = EntraTokens

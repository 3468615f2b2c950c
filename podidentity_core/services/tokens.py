"""NMI's work: whose request it is, which identity answers it, and the token.

A request is authorised each time, from what the cluster says at that moment; only then is a kept token looked up.
So a revoked binding ends service at once, and a re-used address inherits nothing.
"""

from __future__ import annotations

import math
from collections.abc import Coroutine, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from podidentity_core.model import Identity, IdentityKind, Key, Pod
from podidentity_core.node_view import NodeView
from podidentity_core.ports import AccessToken, Clock, ClusterReader, Meter, NodeTokenSource, PodReader, TokenSource
from podidentity_core.reasons import Explanation, Reason, because
from podidentity_core.selection import Decision, Deny, Patience, Serve, Wait, is_excepted, select
from podidentity_core.services.callers import Callers
from podidentity_core.services.token_cache import Fetch, TokenCache
from podidentity_core.services.waiters import Waiters
from podidentity_core.token_request import TokenRequest

MOST_TENANTS = 3
"""Auxiliary tenants of one identity. Source: aad-pod-identity pkg/auth/auth.go:135."""


@dataclass(frozen=True, slots=True)
class Granted:
    """Answer with *tokens*: one, or one for each tenant, the main one first.

    *identity* is None for a pod that an exception rule names. *kept*: no call was needed.
    """

    tokens: tuple[AccessToken, ...]
    pod: Pod
    identity: Identity | None
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Denied:
    """Answer with an error. *pod* is None when the address belongs to none, or to several."""

    explanation: Explanation
    pod: Pod | None = None


@dataclass(frozen=True, slots=True)
class TokenPorts:
    """What the work needs from outside. *sources* is the table that says where each kind's tokens come from."""

    cluster: ClusterReader
    pods: PodReader
    sources: Mapping[IdentityKind, TokenSource]
    node_tokens: NodeTokenSource
    clock: Clock
    meter: Meter


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """How the operator wants it. *longest_kept_s*: tokens are kept no longer; 0: not at all."""

    node: str
    namespaced: bool = False
    mic_namespace: str = "default"
    patience: Patience = Patience()
    longest_kept_s: float = math.inf


class TokenService:
    """Answers token requests of the pods of one node."""

    def __init__(self, ports: TokenPorts, settings: TokenSettings) -> None:
        self._ports = ports
        self._settings = settings
        self._view = NodeView()
        self._cache = TokenCache(ports.clock, ports.meter, longest_s=settings.longest_kept_s)
        self._waiters = Waiters(ports.clock, ports.meter)
        self._callers = Callers(
            settings.node, self._view, self._waiters, ports.pods, clock=ports.clock, meter=ports.meter
        )

    @property
    def synced(self) -> bool:
        """Whether everything that existed at the start has been seen."""
        return self._view.synced

    @property
    def waiting(self) -> int:
        """How many requests wait for the cluster to change."""
        return len(self._waiters)

    @property
    def version(self) -> int:
        """Goes up whenever `at_once` may decide otherwise than before, but for the passing of time."""
        return self._view.version + self._cache.version

    async def run(self) -> None:
        """Follow the cluster, until cancelled. Raises what the cluster's iterator raises."""
        try:
            async for batch in self._ports.cluster.changes():
                for change in batch:
                    self._waiters.wake(self._view.apply(change))
        finally:
            await self._cache.close()

    def end_waits(self) -> None:
        """Answer all who wait for the cluster to change, so that they ask again elsewhere; and let none begin."""
        self._waiters.end()

    def forget_tokens(self) -> int:
        """Drop all kept tokens, so that a change of roles shows at once; return how many there were."""
        return self._cache.clear()

    def addresses(self) -> tuple[str, ...]:
        """All addresses of the node's pods from which requests may come."""
        return self._view.addresses()

    def at_once(self, address: str, request: TokenRequest) -> Granted | None:
        """Answer if that takes neither a wait nor a call; None says: ask `answer`, which decides in the same way."""
        pods = self._view.pods_at(address)
        if len(pods) != 1 or not self._view.synced:
            return None
        (pod,) = pods
        identity: Identity | None = None
        if self._is_excepted(pod):
            keys: tuple[Hashable, ...] = (_node_key(request),)
        else:
            decision = self._decide(pod, request, 0.0)
            if not isinstance(decision, Serve):
                return None
            identity = decision.identity
            keys = tuple(_key(one, request.resource) for one in _by_tenant(identity))
        tokens = tuple(token for key in keys if (token := self._cache.fresh(key)) is not None)
        if len(tokens) != len(keys):
            return None
        self._ports.meter.count("nmi_token_cache_count", result="hit")
        return Granted(tokens, pod, identity, kept=True)

    async def answer(self, address: str, request: TokenRequest) -> Granted | Denied:
        """Decide on a request that came from *address*, wait if that helps, and fetch the token.

        Raises:
            TokenRefused: the token service said no.
            RefusedError: the identity's object, its Secret or the operator's rules stand against it.
            TransientError: the service could not be reached, or asks for patience.
        """
        return await self._placed(address, self._answer(address, request))

    async def answer_host(self, address: str, pod: Key, request: TokenRequest) -> Granted | Denied:
        """Answer a program of the node, at *address*, that asks on behalf of *pod*; no exception counts.

        The pod need not be known: in standard mode an assignment for it is enough. Raises as `answer` does.
        Source: aad-pod-identity pkg/nmi/server/server.go:256.
        """
        return await self._placed(address, self._answer_host(pod, request))

    async def _placed(self, address: str, answer: Coroutine[Any, Any, Granted | Denied]) -> Granted | Denied:
        """Return what *answer* returns, if there is a place for one more who waits at *address*."""
        with self._waiters.place(address) as problem:
            if problem:
                answer.close()
                return Denied(because(Reason.TOO_MANY_WAIT, whose=problem))
            return await answer

    async def _answer_host(self, pod: Key, request: TokenRequest) -> Granted | Denied:
        began_s = self._ports.clock.monotonic_s()
        while True:
            named = self._view.pod(pod) or Pod(pod.namespace, pod.name, uid="")
            if (result := await self._once(named, request, began_s)) is not None:
                return result

    async def _answer(self, address: str, request: TokenRequest) -> Granted | Denied:
        began_s = self._ports.clock.monotonic_s()
        uid = ""
        while True:
            pod = await self._callers.pod_at(address)
            if isinstance(pod, Explanation):
                return Denied(self._ending() or pod)
            if uid and pod.uid != uid:  # who asked is gone, and its successor inherits nothing
                return Denied(because(Reason.UNKNOWN_POD, address=address, node=self._settings.node))
            uid = pod.uid
            if self._is_excepted(pod):
                return await self._node_token(pod, request)
            if (result := await self._once(pod, request, began_s)) is not None:
                return result

    async def _once(self, pod: Pod, request: TokenRequest, began_s: float) -> Granted | Denied | None:
        """Decide once; None after a wait, which says: look again at everything."""
        match self._decide(pod, request, self._ports.clock.monotonic_s() - began_s):
            case Serve(identity):
                return await self._token(pod, identity, request.resource)
            case Deny(explanation):
                return Denied(explanation, pod)
            case Wait(seconds):
                if (ending := self._ending()) is not None:
                    return Denied(ending, pod)
                await self._waiters.change_of(pod.key, seconds)
        return None

    def _ending(self) -> Explanation | None:
        return because(Reason.ENDING) if self._waiters.ended else None

    def _is_excepted(self, pod: Pod) -> bool:
        return is_excepted(pod, self._view.rules(), mic_namespace=self._settings.mic_namespace)

    def _decide(self, pod: Pod, request: TokenRequest, waited_s: float) -> Decision:
        return select(
            pod,
            self._view.assignments_of(pod),
            request,
            namespaced=self._settings.namespaced,
            waited_s=waited_s,
            patience=self._settings.patience,
        )

    async def _token(self, pod: Pod, identity: Identity, resource: str) -> Granted | Denied:
        source = self._ports.sources.get(identity.kind)
        if source is None:
            return Denied(
                because(Reason.UNSUPPORTED_KIND, identity=str(identity.key), kind=str(identity.kind.value)), pod
            )
        if (surplus := len(identity.auxiliary_tenant_ids)) > MOST_TENANTS:
            problem = f"AzureIdentity {identity.key}: spec.auxiliaryTenantIDs names {surplus} tenants, three at most"
            return Denied(because(Reason.CREDENTIAL_UNUSABLE, problem=problem), pod)
        tokens, kept = [], True
        for one in _by_tenant(identity):
            key = _key(one, resource)
            kept = kept and self._cache.has(key)
            tokens.append(await self._cache.get(key, _fetch(source, one, resource)))
        return Granted(tuple(tokens), pod, identity, kept)

    async def _node_token(self, pod: Pod, request: TokenRequest) -> Granted:
        source, key = self._ports.node_tokens, _node_key(request)
        kept = self._cache.has(key)
        token = await self._cache.get(key, lambda: source.issue_for_node(request.selector, request.resource))
        return Granted((token,), pod, None, kept)


def _fetch(source: TokenSource, identity: Identity, resource: str) -> Fetch:
    return lambda: source.issue(identity, resource)


def _by_tenant(identity: Identity) -> tuple[Identity, ...]:
    """The identity in each of its tenants, the main one first (pkg/auth/auth.go:135)."""
    if not identity.auxiliary_tenant_ids:
        return (identity,)
    return (identity, *(replace(identity, tenant_id=tenant) for tenant in identity.auxiliary_tenant_ids))


def _key(identity: Identity, resource: str) -> Hashable:
    """What a token depends on. A Secret counts with the namespace that uses it, which may not be allowed to."""
    credential = (identity.secret, identity.namespace, identity.ad_endpoint) if identity.secret else None
    return (identity.kind, identity.client_id.lower(), identity.tenant_id, credential, resource)


def _node_key(request: TokenRequest) -> Hashable:
    return ("node", request.selector, request.resource)

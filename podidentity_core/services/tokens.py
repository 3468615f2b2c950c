"""NMI's work: whose request it is, which identity answers it, and the token.

A request is authorised each time, from what the cluster says at that moment; only then is a kept token looked up.
So a revoked binding ends service at once, and a re-used address inherits nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from podidentity_core.model import Identity, IdentityKind, Pod
from podidentity_core.node_view import SYNCED, NodeView
from podidentity_core.ports import AccessToken, Clock, ClusterReader, NodeTokenSource, TokenSource
from podidentity_core.reasons import Explanation, Reason, because
from podidentity_core.selection import Decision, Deny, Patience, Serve, Wait, is_excepted, select
from podidentity_core.services.token_cache import TokenCache
from podidentity_core.services.waiting import wait_at_most
from podidentity_core.token_request import TokenRequest

UNKNOWN_POD_WAIT_S = 1.2
"""How long a request from an unknown address waits for its pod (the original looked 5 times in 1.2 s)."""


@dataclass(frozen=True, slots=True)
class Granted:
    """Answer with *token*. *identity* is None for a pod that an exception rule names."""

    token: AccessToken
    pod: Pod
    identity: Identity | None


@dataclass(frozen=True, slots=True)
class Denied:
    """Answer with an error. *pod* is None when the address belongs to none, or to several."""

    explanation: Explanation
    pod: Pod | None = None


@dataclass(frozen=True, slots=True)
class TokenPorts:
    """What the work needs from outside. *sources* is the table that says where each kind's tokens come from."""

    cluster: ClusterReader
    sources: Mapping[IdentityKind, TokenSource]
    node_tokens: NodeTokenSource
    clock: Clock


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """How the operator wants it."""

    node: str
    namespaced: bool = False
    mic_namespace: str = "default"
    patience: Patience = Patience()


class TokenService:
    """Answers token requests of the pods of one node."""

    def __init__(self, ports: TokenPorts, settings: TokenSettings) -> None:
        self._ports = ports
        self._settings = settings
        self._view = NodeView()
        self._cache = TokenCache(ports.clock)
        self._waiters: dict[Hashable, set[asyncio.Event]] = {}

    @property
    def synced(self) -> bool:
        """Whether everything that existed at the start has been seen."""
        return self._view.synced

    async def run(self) -> None:
        """Follow the cluster, until cancelled. Raises what the cluster's iterator raises."""
        try:
            async for batch in self._ports.cluster.changes():
                for change in batch:
                    for topic in self._view.apply(change):
                        for waiter in self._waiters.get(topic, ()):
                            waiter.set()
        finally:
            await self._cache.close()

    def at_once(self, address: str, request: TokenRequest) -> Granted | None:
        """Answer if that takes neither a wait nor a call; None says: ask `answer`, which decides in the same way."""
        pods = self._view.pods_at(address)
        if len(pods) != 1 or not self._view.synced:
            return None
        (pod,) = pods
        if self._is_excepted(pod):
            token, identity = self._cache.fresh(_node_key(request)), None
        else:
            decision = self._decide(pod, request, 0.0)
            if not isinstance(decision, Serve):
                return None
            identity = decision.identity
            token = self._cache.fresh(_identity_key(identity, request.resource))
        return Granted(token, pod, identity) if token is not None else None

    async def answer(self, address: str, request: TokenRequest) -> Granted | Denied:
        """Decide on a request that came from *address*, wait if that helps, and fetch the token.

        Raises:
            TokenRefused: the token service said no.
            TransientError: it could not be reached, or asks for patience.
        """
        began_s = self._ports.clock.monotonic_s()
        pod = await self._pod_at(address, began_s)
        if not isinstance(pod, Pod):
            return Denied(pod)
        if self._is_excepted(pod):
            return Granted(await self._node_token(request), pod, None)
        while True:
            decision = self._decide(pod, request, self._ports.clock.monotonic_s() - began_s)
            match decision:
                case Serve(identity):
                    return await self._token(pod, identity, request.resource)
                case Deny(explanation):
                    return Denied(explanation, pod)
                case Wait(seconds):
                    await self._change_of(pod.key, seconds)
            present = self._view.pods_at(address)
            if len(present) != 1 or present[0].uid != pod.uid:
                return Denied(self._unknown(address))
            pod = present[0]

    def _is_excepted(self, pod: Pod) -> bool:
        return is_excepted(pod, self._view.rules(), mic_namespace=self._settings.mic_namespace)

    def _decide(self, pod: Pod, request: TokenRequest, waited_s: float) -> Decision:
        return select(
            pod,
            self._view.assignments_of(pod.key),
            request,
            namespaced=self._settings.namespaced,
            waited_s=waited_s,
            patience=self._settings.patience,
        )

    async def _pod_at(self, address: str, began_s: float) -> Pod | Explanation:
        """The pod, once everything is known that exists: who it is, and whether a rule makes an exception of it."""
        while True:
            pods = self._view.pods_at(address)
            if len(pods) == 1 and self._view.synced:
                return pods[0]
            if len(pods) > 1:
                return because(Reason.AMBIGUOUS_POD, address=address, node=self._settings.node)
            patience_s = UNKNOWN_POD_WAIT_S if self._view.synced else self._settings.patience.absent_s
            left_s = patience_s - (self._ports.clock.monotonic_s() - began_s)
            if left_s <= 0:
                return self._unknown(address)
            await self._change_of(address if self._view.synced else SYNCED, left_s)

    def _unknown(self, address: str) -> Explanation:
        return because(Reason.UNKNOWN_POD, address=address, node=self._settings.node)

    async def _change_of(self, topic: Hashable, within_s: float) -> None:
        changed = asyncio.Event()
        self._waiters.setdefault(topic, set()).add(changed)
        try:
            await wait_at_most(within_s, changed.wait(), self._ports.clock)
        finally:
            waiters = self._waiters[topic]
            waiters.discard(changed)
            if not waiters:
                del self._waiters[topic]

    async def _token(self, pod: Pod, identity: Identity, resource: str) -> Granted | Denied:
        source = self._ports.sources.get(identity.kind)
        if source is None:
            return Denied(
                because(Reason.UNSUPPORTED_KIND, identity=str(identity.key), kind=str(identity.kind.value)), pod
            )
        key = _identity_key(identity, resource)
        token = await self._cache.get(key, lambda: source.issue(identity, resource))
        return Granted(token, pod, identity)

    async def _node_token(self, request: TokenRequest) -> AccessToken:
        source = self._ports.node_tokens
        return await self._cache.get(
            _node_key(request), lambda: source.issue_for_node(request.selector, request.resource)
        )


def _identity_key(identity: Identity, resource: str) -> Hashable:
    return (identity.kind, identity.client_id.lower(), identity.tenant_id, resource)


def _node_key(request: TokenRequest) -> Hashable:
    return ("node", request.selector, request.resource)

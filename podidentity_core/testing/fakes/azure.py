"""Azure in memory: hosts with their identities, and the tokens of those identities."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from podidentity_core.errors import Conflict, IdentitiesRefused, NotFound, RefusedError, TokenRefused
from podidentity_core.model import Identity
from podidentity_core.ports import AccessToken, Clock, HostIdentities, HostState, NodeTokenSource, TokenSource
from podidentity_core.resource_ids import Host, IdentityResource
from podidentity_core.token_request import Selector


class HostWrite(NamedTuple):
    """A write that a host took: only what made a difference."""

    host: Host
    add: frozenset[IdentityResource]
    remove: frozenset[IdentityResource]


@dataclass(slots=True)
class _Carried:
    """A host: what it lists at once, and what its pods can use until *settles_at_s*, when the two are the same."""

    listed: frozenset[IdentityResource]
    usable: frozenset[IdentityResource]
    system_assigned: bool = False
    deleting: bool = False
    settles_at_s: float = 0.0
    writes: int = 0


class FakeHosts:
    """HostIdentities in memory. A host exists once it was `put`.

    A write takes *duration_s* of *clock*, and a newer one for the same host replaces it, as in Azure: the older call
    raises `Conflict`, and what it asked for holds unless the newer one says otherwise. *changes* has the writes, in
    the order in which they began; *writes* counts those that were refused, too.
    """

    def __init__(self, clock: Clock, *, duration_s: float = 0.0) -> None:
        self.duration_s = duration_s
        self.changes: list[HostWrite] = []
        self._clock = clock
        self._hosts: dict[Host, _Carried] = {}
        self.writes = 0
        self._refused: set[IdentityResource] = set()
        self._refused_unnamed: set[IdentityResource] = set()
        self._failures: deque[tuple[Exception, bool]] = deque()

    def put(
        self, host: Host, *identities: IdentityResource, system_assigned: bool = False, deleting: bool = False
    ) -> None:
        """Let *host* exist and carry these identities since long ago."""
        held = frozenset(identities)
        self._hosts[host] = _Carried(held, held, system_assigned, deleting)

    def remove(self, host: Host) -> None:
        """Let *host* vanish."""
        self._hosts.pop(host, None)

    def refuse(self, resource: IdentityResource, *, named: bool = True) -> None:
        """Refuse every write that adds *resource*, until `accept`; the error names it, or nobody."""
        self.accept(resource)
        (self._refused if named else self._refused_unnamed).add(resource)

    def accept(self, resource: IdentityResource) -> None:
        """Undo `refuse`."""
        self._refused.discard(resource)
        self._refused_unnamed.discard(resource)

    def preempt(self, host: Host, resource: IdentityResource) -> None:
        """Let somebody else put *resource* on *host*, by a write that begins now."""
        self._write(host, self._hosts[host], frozenset({resource}), frozenset())

    def fail_next(self, error: Exception, *, after_write: bool = False) -> None:
        """Let the next call raise *error*; further ones queue up.

        The call does nothing else, or with *after_write* does everything: its answer was lost.
        """
        self._failures.append((error, after_write))

    def usable(self, host: Host) -> frozenset[IdentityResource]:
        """What pods on *host* can use at this moment."""
        carried = self._hosts[host]
        return carried.listed if self._clock.monotonic_s() >= carried.settles_at_s else carried.usable

    def listed(self, host: Host) -> frozenset[IdentityResource]:
        """What *host* lists at this moment: ahead of what can be used, while a write is under way."""
        return self._hosts[host].listed

    def has_system_assigned(self, host: Host) -> bool:
        """Whether *host* has its system-assigned identity."""
        return self._hosts[host].system_assigned

    async def attached(self, host: Host) -> HostState:
        """Read what *host* carries, once it can be used."""
        self._fail(after_write=False)
        carried = self._carried(host)
        await self._clock.sleep(0)
        while (under_way_s := carried.settles_at_s - self._clock.monotonic_s()) > 0:
            await self._clock.sleep(under_way_s)  # meanwhile another write may have begun
        return HostState(carried.listed, carried.deleting)

    async def change(
        self, host: Host, *, add: Collection[IdentityResource], remove: Collection[IdentityResource]
    ) -> HostState:
        """Change what *host* carries, and return once it can be used."""
        self._fail(after_write=False)
        carried = self._carried(host)
        added = frozenset(add) - carried.listed
        removed = (frozenset(remove) - frozenset(add)) & carried.listed
        if added or removed:
            self.writes += 1
            self._write(host, carried, added, removed)
        write = carried.writes if added or removed else None
        await self._clock.sleep(carried.settles_at_s - self._clock.monotonic_s())
        self._fail(after_write=True)
        if write is not None and carried.writes != write:
            raise Conflict(f"{host}: a newer write has replaced this one")
        return HostState(carried.listed, carried.deleting)

    def _write(
        self, host: Host, carried: _Carried, added: frozenset[IdentityResource], removed: frozenset[IdentityResource]
    ) -> None:
        if carried.deleting:
            raise RefusedError(f"{host} is being deleted")
        if added & self._refused_unnamed:
            raise IdentitiesRefused(f"{host} refuses the change", resource_ids=frozenset())
        if bad := added & self._refused:
            names = frozenset(resource.text for resource in bad)
            raise IdentitiesRefused(f"{host} refuses {', '.join(sorted(names))}", resource_ids=names)
        self.changes.append(HostWrite(host, added, removed))
        carried.usable = self.usable(host)
        carried.listed = (carried.listed | added) - removed
        carried.settles_at_s = self._clock.monotonic_s() + self.duration_s
        carried.writes += 1

    def _carried(self, host: Host) -> _Carried:
        if host not in self._hosts:
            raise NotFound(f"{host} does not exist")
        return self._hosts[host]

    def _fail(self, *, after_write: bool) -> None:
        if self._failures and self._failures[0][1] == after_write:
            raise self._failures.popleft()[0]


class TokenCall(NamedTuple):
    """A request for a token: *who* is a client ID, a selector, or empty for the node's own identity."""

    who: str
    resource: str


class FakeTokens:
    """TokenSource and NodeTokenSource in memory. Tokens are opaque texts, each a new one.

    They live for *lifetime_s*; fetching one takes *duration_s*. *calls* has what was asked for, *tenants* in which
    tenants. With *known* given, other client IDs are refused.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        lifetime_s: float = 86_400.0,
        duration_s: float = 0.0,
        known: Collection[str] | None = None,
    ) -> None:
        self.lifetime_s = lifetime_s
        self.duration_s = duration_s
        self.calls: list[TokenCall] = []
        self.tenants: list[str] = []
        self._clock = clock
        self._known = None if known is None else {client_id.lower() for client_id in known}
        self._failures: deque[Exception] = deque()

    def fail_next(self, error: Exception) -> None:
        """Let the next call raise *error*; further ones queue up."""
        self._failures.append(error)

    async def issue(self, identity: Identity, resource: str) -> AccessToken:
        """Make a token of *identity* for *resource*."""
        self.tenants.append(identity.tenant_id)
        return await self._issue(identity.client_id, resource)

    async def issue_for_node(self, selector: Selector | None, resource: str) -> AccessToken:
        """Make a token of the node's default identity, or of the one that *selector* names."""
        return await self._issue("" if selector is None else selector.value, resource)

    async def _issue(self, who: str, resource: str) -> AccessToken:
        self.calls.append(TokenCall(who, resource))
        number = len(self.calls)
        await self._clock.sleep(self.duration_s)
        if self._failures:
            raise self._failures.popleft()
        if who and self._known is not None and who.lower() not in self._known:
            body = b'{"error":"invalid_request","error_description":"Identity not found"}'
            raise TokenRefused("Identity not found", status=400, body=body)
        now_s = int(self._clock.wall_s())
        fields = {"client_id": who, "not_before": str(now_s), "resource": resource, "token_type": "Bearer"}
        return AccessToken(f"token-{number}", now_s + self.lifetime_s, tuple(fields.items()))


if TYPE_CHECKING:
    _hosts: type[HostIdentities] = FakeHosts
    _tokens: type[TokenSource] = FakeTokens
    _node_tokens: type[NodeTokenSource] = FakeTokens

"""What the core needs from outside: small roles, each with its contract. Adapters and fakes implement them.

Every coroutine may raise `TransientError` (repeat it, with back-off) and be cancelled at any await; an adapter gives
each network call a deadline of its own. The contract classes in `podidentity_core.testing.contracts` check an
implementation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from podidentity_core.model import Assignment, AssignmentState, Change, Identity, Key, Pod, Thing
from podidentity_core.resource_ids import Host, IdentityResource
from podidentity_core.token_request import Selector


class Clock(Protocol):
    """Time. Monotonic for deadlines and waits, wall time only for what other programs read."""

    def monotonic_s(self) -> float:
        """Seconds that never jump."""
        ...

    def wall_s(self) -> float:
        """Seconds since the epoch."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after *seconds*."""
        ...


class Meter(Protocol):
    """Counts and durations. Names come without the prefix `aadpodidentity_`; never blocks, never fails."""

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add *amount* to a counter."""
        ...

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add one observation to a histogram; durations are in seconds."""
        ...

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a value that goes up and down."""
        ...


class ClusterReader(Protocol):
    """The cluster as it is and as it changes."""

    def changes(self) -> AsyncIterator[Sequence[Change]]:
        """Yield batches of changes, for ever: first all that exists, then one `Synced`, then each change.

        A batch holds what became known at one moment, in order; it is never empty. Lost connections are the
        adapter's affair: after one, whatever was missed appears as changes. An object that cannot be used comes as
        `Unusable`, never as an exception. Closing the iterator ends all connections.
        """
        ...


class PodReader(Protocol):
    """Asks for a node's pods when what is known may be behind."""

    async def pods(self) -> Sequence[Pod]:
        """Return the node's pods as they are now, not as some cache has them.

        Raises `TransientError`, and `PermissionRefused` when RBAC says no. Not for every request: it costs the
        server a list.
        """
        ...


class AssignmentStore(Protocol):
    """Writes AzureAssignedIdentities. Each method returns or raises when the server has decided.

    Raises, besides `TransientError`: `Conflict` when the object exists already or has changed, `PermissionRefused`
    when RBAC says no, `RefusedError` when the server finds the object invalid.
    """

    async def create(self, assignment: Assignment) -> Assignment:
        """Store a new one, in *assignment.state*; return it as stored."""
        ...

    async def update(self, stored: Assignment, wanted: Assignment) -> Assignment:
        """Give *stored* the pod, node, identity and binding of *wanted*, and its state; return it as stored.

        `Conflict` when *stored* is not the newest version.
        """
        ...

    async def set_state(self, assignment: Assignment, state: AssignmentState) -> Assignment:
        """Change the state alone, which ends its reason; return it as stored. `NotFound` when it no longer exists."""
        ...

    async def explain(self, assignment: Assignment, reason: str, at_s: float) -> Assignment:
        """Note for its readers why it has not got further, and since when (seconds since 1970).

        Returns it as stored. Raises `NotFound` when it no longer exists.
        """
        ...

    async def delete(self, assignment: Assignment) -> None:
        """Remove the object and MIC's finalizer. An object that is gone already is success."""
        ...


@dataclass(frozen=True, slots=True)
class HostState:
    """What a host carries. *deleting*: Azure is removing the host, so it takes no more writes."""

    attached: frozenset[IdentityResource]
    deleting: bool = False


class HostIdentities(Protocol):
    """User-assigned identities of one VM or scale set.

    Raises, besides `TransientError`: `Throttled` with the seconds to wait, `Conflict` when a newer write of somebody
    else replaced this one, `NotFound` when the host is gone, `PermissionRefused`, `IdentitiesRefused` when Azure
    refuses the change because of some identity in it, and `RefusedError` for the rest.
    """

    async def attached(self, host: Host) -> HostState:
        """Read what the host carries now, whoever put it there."""
        ...

    async def change(
        self, host: Host, *, add: Collection[IdentityResource], remove: Collection[IdentityResource]
    ) -> HostState:
        """Add and remove in one write, and return once the identities can be used: what the host carries then.

        An identity in both stays. What is there already (or gone already) needs no write. Repeating a call is
        harmless. Identities that are named in neither, and a system-assigned identity, are left as they are.
        """
        ...


@dataclass(frozen=True, slots=True, repr=False)
class AccessToken:
    """A token and when it dies (*expires_on_s*, wall time). *fields* are the other members of the answer, in order.

    The representation shows no token.
    """

    token: str
    expires_on_s: float
    fields: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return f"AccessToken(expires_on_s={self.expires_on_s})"


class TokenSource(Protocol):
    """Where tokens of one kind of identity come from.

    Raises `TokenRefused` with the service's own answer, `Throttled`, and `TransientError`.
    """

    async def issue(self, identity: Identity, resource: str) -> AccessToken:
        """Fetch a token for *resource* on behalf of *identity*. A new call with each."""
        ...


class NodeTokenSource(Protocol):
    """Tokens of the node itself, for pods that an exception rule names. Raises as `TokenSource` does."""

    async def issue_for_node(self, selector: Selector | None, resource: str) -> AccessToken:
        """Fetch a token of the identity that *selector* names on this node, or of the node's default one."""
        ...


class SecretReader(Protocol):
    """Reads Kubernetes Secrets."""

    async def read(self, key: Key) -> Mapping[str, bytes]:
        """Return the decoded data of one Secret, as it is now.

        Raises `NotFound`, `PermissionRefused` when RBAC says no, and `TransientError`. No message holds any of it.
        """
        ...


class Severity(Enum):
    """The type of an Event."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a user should see at an object. *uid* ties it to this very object, not to its name."""

    kind: type[Thing]
    key: Key
    uid: str
    severity: Severity
    reason: str
    message: str


class EventSink(Protocol):
    """Takes events. Never blocks and never fails: an event that cannot be delivered is logged and dropped."""

    def publish(self, event: Event) -> None:
        """Hand *event* over; repeated ones are counted together."""
        ...


class LeaderLock(Protocol):
    """Sees to it that one process at a time works."""

    async def lead(self, work: Callable[[], Awaitable[None]]) -> None:
        """Campaign, and run *work* while leading; for ever.

        *work* is cancelled, and has ended, before anybody else can lead. Then, or when it returns, the campaign
        starts again. An exception of *work* ends the lead and is raised. On cancellation the lock is released at
        once, after *work* has ended.
        """
        ...

    def is_held(self) -> bool:
        """Whether this process leads at this moment; asked just before every write to a host."""
        ...

"""A dry run: everything is watched, planned and logged, and nothing is written anywhere.

Each class stands in for a port. What would have been written counts as done from then on, so that one step after the
other is planned as it would be; real changes of the cluster come in as always.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from podidentity_core.model import Assignment, AssignmentState
from podidentity_core.ports import AssignmentStore, Event, EventSink, HostIdentities, HostState, LeaderLock
from podidentity_core.resource_ids import Host, IdentityResource
from podidentity_core.settling import HostChange

log = logging.getLogger(__name__)


class DryStore:
    """An AssignmentStore that stores nothing."""

    def __init__(self) -> None:
        self._numbers = count(1)

    async def create(self, assignment: Assignment) -> Assignment:
        """Say what would be created."""
        log.info("dry run: would create AzureAssignedIdentity %s (%s)", assignment.key, assignment.state.value)
        return replace(assignment, uid=f"dry-run-{next(self._numbers)}", resource_version="")

    async def update(self, stored: Assignment, wanted: Assignment) -> Assignment:
        """Say what would be updated."""
        log.info("dry run: would update AzureAssignedIdentity %s", stored.key)
        return replace(
            wanted,
            namespace=stored.namespace,
            name=stored.name,
            uid=stored.uid,
            resource_version=stored.resource_version,
            deleting=stored.deleting,
        )

    async def set_state(self, assignment: Assignment, state: AssignmentState) -> Assignment:
        """Say which state would be set."""
        log.info("dry run: would set AzureAssignedIdentity %s to %s", assignment.key, state.value)
        return replace(assignment, state=state, reason="")

    async def explain(self, assignment: Assignment, reason: str, at_s: float) -> Assignment:  # noqa: ARG002
        """Say which reason would be noted."""
        log.info("dry run: would note at AzureAssignedIdentity %s: %s", assignment.key, reason)
        return replace(assignment, reason=reason)

    async def delete(self, assignment: Assignment) -> None:
        """Say what would be deleted."""
        log.info("dry run: would delete AzureAssignedIdentity %s", assignment.key)


class DryHosts:
    """HostIdentities that are read, and changed in mind only."""

    def __init__(self, hosts: HostIdentities) -> None:
        self._hosts = hosts
        self._changes: dict[Host, HostChange] = {}

    async def attached(self, host: Host) -> HostState:
        """Read what *host* carries, and see it as it would be by now."""
        state = await self._hosts.attached(host)
        change = self._changes.get(host, HostChange())
        return replace(state, attached=(state.attached | change.add) - change.remove)

    async def change(
        self, host: Host, *, add: Collection[IdentityResource], remove: Collection[IdentityResource]
    ) -> HostState:
        """Say what would be written."""
        added, removed = frozenset(add), frozenset(remove) - frozenset(add)
        log.info("dry run: would put %s on %s, and take %s off", _names(added), host, _names(removed))
        before = self._changes.get(host, HostChange())
        self._changes[host] = HostChange((before.add | added) - removed, (before.remove | removed) - added)
        return await self.attached(host)


class DryEvents:
    """An EventSink that logs."""

    def publish(self, event: Event) -> None:
        """Say which event would be written."""
        log.info("dry run: would tell %s %s: %s: %s", event.kind.__name__, event.key, event.reason, event.message)


class DryLock:
    """A LeaderLock that nobody else knows of, since who writes nothing disturbs nobody."""

    async def lead(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run *work* for ever."""
        while True:
            await work()

    def is_held(self) -> bool:
        """Always."""
        return True


def _names(resources: frozenset[IdentityResource]) -> str:
    return ", ".join(sorted(map(str, resources))) or "nothing"


if TYPE_CHECKING:
    _store: type[AssignmentStore] = DryStore
    _hosts: type[HostIdentities] = DryHosts
    _events: type[EventSink] = DryEvents
    _lock: type[LeaderLock] = DryLock

"""One node as NMI sees it: its pods by address, their assignments, and the exception rules.

Assignments are those that MIC has stored, and in managed mode those that follow from identities and bindings. Which
of the two is a matter of what is watched, and of no setting.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from podidentity_core.managed import ManagedAssignments
from podidentity_core.model import (
    Assignment,
    Binding,
    Change,
    ExceptionRule,
    Gone,
    Identity,
    Key,
    Pod,
    PodPhase,
    Seen,
    Synced,
    Thing,
    Unusable,
)

SYNCED = "synced"
"""The topic that changes once, when everything that exists has been seen."""


class NodeView:
    """Feed it changes with `apply`, which says what they touch: an address, a pod's key, or `SYNCED`."""

    def __init__(self) -> None:
        self.synced = False
        self.version = 0
        """How many changes have come."""
        self._pods: dict[Key, Pod] = {}
        self._pods_by_address: dict[str, dict[Key, Pod]] = {}
        self._assignments: dict[Key, Assignment] = {}
        self._assignments_by_pod: dict[Key, dict[Key, Assignment]] = {}
        self._managed = ManagedAssignments()
        self._rules: dict[Key, ExceptionRule] = {}

    def pods_at(self, address: str) -> tuple[Pod, ...]:
        """Pods that may send from *address*: not finished, and with a network of their own."""
        return tuple(self._pods_by_address.get(address, {}).values())

    def addresses(self) -> tuple[str, ...]:
        """All addresses that `pods_at` knows."""
        return tuple(self._pods_by_address)

    def pod(self, key: Key) -> Pod | None:
        """The pod of this name, if it is on this node."""
        return self._pods.get(key)

    def assignments_of(self, pod: Pod) -> Iterable[Assignment]:
        """Assignments of a pod, in any state."""
        stored = self._assignments_by_pod.get(pod.key)
        return stored.values() if stored is not None else self._managed.of(pod)

    def rules(self) -> Iterable[ExceptionRule]:
        """All exception rules."""
        return self._rules.values()

    def apply(self, change: Change) -> set[Hashable]:
        """Take one change in; returns the topics that it touches."""
        self.version += 1
        now: Thing | None = None
        match change:
            case Synced():
                self.synced = True
                return {SYNCED}
            case Seen(thing):
                kind, key, now = type(thing), thing.key, thing
            case Gone(kind, key) | Unusable(kind, key):
                pass
        if kind in (Identity, Binding):
            self._managed.apply(change)
            return set()
        return self._replace(kind, key, now)

    def _replace(self, kind: type[Thing], key: Key, thing: Thing | None) -> set[Hashable]:
        if kind is Pod:
            return self._pod(key, thing if isinstance(thing, Pod) else None)
        if kind is Assignment:
            return self._assignment(key, thing if isinstance(thing, Assignment) else None)
        if kind is ExceptionRule:
            self._rules.pop(key, None)
            if isinstance(thing, ExceptionRule):
                self._rules[key] = thing
        return set()

    def _pod(self, key: Key, new: Pod | None) -> set[Hashable]:
        old = self._pods.pop(key, None)
        for address in sending_addresses(old):
            group = self._pods_by_address[address]
            del group[key]
            if not group:
                del self._pods_by_address[address]
        if new is not None:
            self._pods[key] = new
        for address in sending_addresses(new):
            self._pods_by_address.setdefault(address, {})[key] = new  # type: ignore[assignment]  # it has addresses
        return {*sending_addresses(old), *sending_addresses(new)}

    def _assignment(self, key: Key, new: Assignment | None) -> set[Hashable]:
        old = self._assignments.pop(key, None)
        if old is not None:
            group = self._assignments_by_pod[old.pod]
            del group[key]
            if not group:
                del self._assignments_by_pod[old.pod]
        if new is not None:
            self._assignments[key] = new
            self._assignments_by_pod.setdefault(new.pod, {})[key] = new
        return {assignment.pod for assignment in (old, new) if assignment is not None}


def sending_addresses(pod: Pod | None) -> tuple[str, ...]:
    """Where the pod's own requests come from. A finished pod's address may be another's already."""
    if pod is None or pod.host_network or pod.phase not in (PodPhase.PENDING, PodPhase.RUNNING):
        return ()
    return pod.ips

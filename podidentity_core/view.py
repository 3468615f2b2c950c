"""The cluster as last seen, indexed so that the cost of a change grows with the change and not with the cluster."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

from podidentity_core.model import (
    Assignment,
    Binding,
    Change,
    Gone,
    Identity,
    Key,
    Node,
    Pod,
    Seen,
    Synced,
    Thing,
    Unusable,
)
from podidentity_core.resource_ids import Host

K = TypeVar("K", bound=Hashable)


class _Index(Generic[K]):
    """Which keys stand under a value; an empty group takes no memory."""

    def __init__(self) -> None:
        self._groups: dict[K, set[Key]] = {}

    def move(self, key: Key, old: K | None, new: K | None) -> None:
        if old == new:
            return
        if old is not None and (group := self._groups.get(old)) is not None:
            group.discard(key)
            if not group:
                del self._groups[old]
        if new is not None:
            self._groups.setdefault(new, set()).add(key)

    def under(self, value: K) -> Iterable[Key]:
        return self._groups.get(value, ())


MOST_GONE = 10_000
"""How many assignments that are gone are kept in mind: more than can go while one answer or one event is late."""


class ClusterView:
    """Everything that MIC decides from. Feed it changes with `apply`; read the mappings, never write to them."""

    def __init__(self) -> None:
        self.pods: dict[Key, Pod] = {}
        self.identities: dict[Key, Identity] = {}
        self.bindings: dict[Key, Binding] = {}
        self.assignments: dict[Key, Assignment] = {}
        self.bindings_by_selector: dict[str, tuple[Binding, ...]] = {}
        self.synced = False
        self._hosts: dict[str, Node] = {}
        self._nodes: set[str] = set()
        self._pods_by_label: _Index[str] = _Index()
        self._pods_by_node: _Index[str] = _Index()
        self._bindings_by_identity: _Index[Key] = _Index()
        self._assignments_by_pod: _Index[Key] = _Index()
        self._assignments_by_node: _Index[str] = _Index()
        self._gone_uids: dict[str, None] = {}  # of assignments, the oldest first
        self._doubted: dict[Key, Assignment] = {}

    @classmethod
    def of(cls, things: Iterable[Thing]) -> ClusterView:
        """Build a view of a cluster that consists of *things*."""
        view = cls()
        for thing in things:
            view.apply(Seen(thing))
        view.apply(Synced())
        return view

    def node(self, name: str) -> Node | None:
        """The node, also when it is gone: its scale set may still carry identities that it needed."""
        return self._hosts.get(name)

    def host(self, node: str) -> Host | None:
        """The VM or scale set behind *node*; None when it is not known."""
        found = self._hosts.get(node)
        return found.host if found else None

    def host_of(self, assignment: Assignment) -> Host | None:
        """The host that carries an assignment's identity: as MIC noted it, else the one of its node.

        The note comes first: a node may be gone, or its name may stand for another host by now.
        """
        return assignment.host or self.host(assignment.node)

    def has_node(self, name: str) -> bool:
        """Whether the node exists now."""
        return name in self._nodes

    def assignments_of(self, pod: Key) -> Iterator[Assignment]:
        """Stored assignments of a pod, whether or not the pod exists."""
        return (self.assignments[key] for key in self._assignments_by_pod.under(pod))

    def concerned_pods(self) -> set[Key]:
        """All pods that exist or have a stored assignment."""
        return self.pods.keys() | {assignment.pod for assignment in self.assignments.values()}

    def mark_deleted(self, assignment: Assignment) -> set[Key]:
        """Forget an assignment that does not exist any more, before the watch says so; returns the pods to plan again.

        A late event about the same object, or a late answer to a write, does not bring it back.
        """
        known = self.assignments.get(assignment.key)
        if known is None or known.uid != assignment.uid:
            return set()  # the watch was faster
        self._note_gone(assignment.uid)
        return self._assignment(assignment.key, None)

    def _note_gone(self, uid: str) -> None:
        if uid:
            self._gone_uids[uid] = None
        if len(self._gone_uids) > MOST_GONE:
            del self._gone_uids[next(iter(self._gone_uids))]

    def doubt(self, assignment: Assignment) -> set[Key]:
        """Do not rely on *assignment*, since nobody knows whether its update was made; returns the pods to plan again.

        It is planned to be written once more, until a newer version is seen.
        """
        self._doubted[assignment.key] = assignment
        return {assignment.pod}

    def is_doubted(self, assignment: Assignment) -> bool:
        """Whether the server may hold a newer version, of which we would be the author."""
        doubted = self._doubted.get(assignment.key)
        return doubted is not None and _version(doubted) == _version(assignment)

    def apply(self, change: Change) -> set[Key]:
        """Take one change in; returns the pods that have to be planned again because of it."""
        match change:
            case Synced():
                self.synced = True
                return set()
            case Seen(thing):
                return self._replace(type(thing), thing.key, thing)
            case Gone(kind, key, uid):
                if kind is Assignment:
                    self._note_gone(uid)
                return self._replace(kind, key, None) if self._is_the_one_gone(kind, key, uid) else set()
            case Unusable(kind, key):
                return self._replace(kind, key, None)

    def _is_the_one_gone(self, kind: type[Thing], key: Key, uid: str) -> bool:
        """Whether a watch's farewell means the object that we know, and not one that we have since replaced."""
        successor = self.assignments.get(key) if kind is Assignment else None
        return successor is None or not uid or successor.uid == uid

    def _replace(self, kind: type[Thing], key: Key, thing: Thing | None) -> set[Key]:
        if kind is Pod:
            return self._pod(key, thing)  # type: ignore[arg-type]  # kind says which
        if kind is Assignment:
            return self._assignment(key, thing)  # type: ignore[arg-type]
        if kind is Node:
            return self._node(key, thing)  # type: ignore[arg-type]
        if kind is Binding:
            return self._binding(key, thing)  # type: ignore[arg-type]
        if kind is Identity:
            return self._identity(key, thing)  # type: ignore[arg-type]
        return set()

    def _pod(self, key: Key, new: Pod | None) -> set[Key]:
        old = _swap(self.pods, key, new)
        self._pods_by_label.move(key, old.label if old else None, new.label if new else None)
        self._pods_by_node.move(key, old.node if old else None, new.node if new else None)
        return set() if old == new else {key}

    def _assignment(self, key: Key, new: Assignment | None) -> set[Key]:
        old = self.assignments.get(key)
        if new is not None and (new.uid in self._gone_uids or _is_older(new, old)):
            return set()
        if (doubted := self._doubted.get(key)) and (new is None or _version(new) != _version(doubted)):
            del self._doubted[key]
        _swap(self.assignments, key, new)
        self._assignments_by_pod.move(key, old.pod if old else None, new.pod if new else None)
        self._assignments_by_node.move(key, old.node if old else None, new.node if new else None)
        if old == new:
            return set()  # our own write, which the watch reports as well
        return {assignment.pod for assignment in (old, new) if assignment is not None}

    def _node(self, key: Key, new: Node | None) -> set[Key]:
        old = self._hosts.get(key.name)
        if new is None:
            self._nodes.discard(key.name)
            return set()
        self._nodes.add(key.name)
        if old == new:
            return set()
        self._hosts[key.name] = new
        concerned = set(self._pods_by_node.under(key.name))
        concerned.update(self.assignments[name].pod for name in self._assignments_by_node.under(key.name))
        return concerned

    def _binding(self, key: Key, new: Binding | None) -> set[Key]:
        old = _swap(self.bindings, key, new)
        self._bindings_by_identity.move(key, old.identity_key if old else None, new.identity_key if new else None)
        concerned: set[Key] = set()
        for selector in {binding.selector for binding in (old, new) if binding is not None}:
            self._regroup(selector, key, new if new is not None and new.selector == selector else None)
            if old != new:
                concerned.update(self._pods_by_label.under(selector))
        return concerned

    def _regroup(self, selector: str, key: Key, new: Binding | None) -> None:
        group = [binding for binding in self.bindings_by_selector.get(selector, ()) if binding.key != key]
        if new is not None:
            group.append(new)
        if group:
            self.bindings_by_selector[selector] = tuple(sorted(group, key=lambda binding: binding.key))
        else:
            self.bindings_by_selector.pop(selector, None)

    def _identity(self, key: Key, new: Identity | None) -> set[Key]:
        old = _swap(self.identities, key, new)
        if old == new:
            return set()
        concerned: set[Key] = set()
        for binding in self._bindings_by_identity.under(key):
            concerned.update(self._pods_by_label.under(self.bindings[binding].selector))
        return concerned


T = TypeVar("T")


def _swap(mapping: dict[Key, T], key: Key, new: T | None) -> T | None:
    """Store *new* (None: nothing) under *key*; returns what was there."""
    if new is None:
        return mapping.pop(key, None)
    old = mapping.get(key)
    mapping[key] = new
    return old


def _version(assignment: Assignment) -> tuple[str, str]:
    return assignment.uid, assignment.resource_version


def _is_older(new: Assignment, old: Assignment | None) -> bool:
    """Whether the watch reports a version that our own write has already overtaken.

    Resource versions of one object grow; they are numbers in every API server that stores in etcd.
    """
    if old is None or old.uid != new.uid:
        return False
    try:
        return int(new.resource_version) < int(old.resource_version)
    except ValueError:
        return False

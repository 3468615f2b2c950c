"""A cluster and an Azure as they really are, by the rules that users know, and who put what on which host."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from podidentity_core.model import Assignment, Binding, Identity, Key, Node, Pod, Thing, Unusable
from podidentity_core.reasons import Reason, because
from podidentity_core.resource_ids import Host, HostKind, IdentityResource
from podidentity_core.testing.builders import client_id, node, resource, scale_set, vm, vmss_node
from podidentity_core.testing.clock import FakeClock
from podidentity_core.testing.fakes import FakeCluster, FakeHosts

log = logging.getLogger(__name__)

NODES = (
    vmss_node("n0", "pool", 0),
    vmss_node("n1", "POOL", 1),
    node("n2"),
    vmss_node("n3", "other", 0),
)
FORMS: dict[str, tuple[Node, ...]] = {
    "n0": (NODES[0], node("n0", host=scale_set("other"))),
    "n1": (NODES[1], Node("n1", None, "spec.providerID is empty")),
    "n2": (NODES[2], node("n2", host=vm("n2-again")), node("n2", host=scale_set("pool"))),
    "n3": (NODES[3],),
}
"""What the node of a name may be; the first is the usual."""
NAMES = ("a", "b", "c")
STRANGERS = ("stranger-1", "stranger-2")
"""Azure identities that only somebody else uses."""
NAMESPACES = ("default", "shop")
UNREAD_S = 120.0
"""Longer than any news are on their way."""


@dataclass(frozen=True)
class Need:
    """A pod on a node should have an identity because of a binding."""

    pod: Key
    node: str
    host: Host | None
    identity: Identity
    binding: Binding
    assignment: Key

    @property
    def what(self) -> IdentityResource | None:
        return self.identity.host_resource


class World:
    """Things exist once they were `put`. *foreign* is what somebody else put on a host, *unclear* what nobody can tell
    any more, with the reason.
    """

    def __init__(self, chance: Random, *, namespaced: bool, immutable: frozenset[IdentityResource]) -> None:
        self.chance = chance
        self.namespaced = namespaced
        self.immutable = immutable
        self.clock = FakeClock()
        self.cluster = FakeCluster()
        self.hosts = FakeHosts(self.clock, duration_s=chance.choice((0.0, 0.5, 2.0, 2.0, 8.0)))
        self.things: dict[tuple[type[Thing], Key], Thing] = {}
        self.foreign: dict[Host, set[IdentityResource]] = {}
        self.unclear: dict[tuple[Host, IdentityResource], str] = {}
        self.left_behind: Counter[str] = Counter()
        self.disturbed_s: dict[Host, float] = {}
        self.condemned: set[Host] = set()
        self.needs: dict[Need, float] = {}
        """What should be, and since when."""
        self.originals: list[Assignment] = []
        """What the original has left; MIC may still know of what is gone by now."""
        self.lost_updates: list[tuple[float, Assignment]] = []
        """Assignments as they were before updates whose answer was lost, and when."""
        self.former: list[Pod] = []
        """Pods as they were before they moved."""
        self._last_host: dict[str, Host] = {}
        self._uids = 0

    @property
    def now_s(self) -> float:
        return self.clock.monotonic_s()

    def note(self, text: str) -> None:
        """Write *text* into the chronicle."""
        log.info("== %s", text)

    # The cluster

    def put(self, thing: Thing) -> None:
        self.note(f"put {thing}")
        self.things[type(thing), thing.key] = thing
        if isinstance(thing, Node) and thing.host is not None:
            self._last_host[thing.name] = thing.host
            self.make_host(thing.host)
        self.cluster.put(thing)
        self.note_needs()

    def remove(self, thing: Thing | None) -> None:
        if thing is not None:
            self.note(f"remove {type(thing).__name__} {thing.key}")
            del self.things[type(thing), thing.key]
            self.cluster.remove(thing)
            self.note_needs()

    def spoil(self, thing: Thing | None) -> None:
        """Make *thing* one that cannot be used."""
        if thing is not None:
            self.note(f"spoil {type(thing).__name__} {thing.key}")
            del self.things[type(thing), thing.key]
            bad = because(Reason.BAD_OBJECT, kind=type(thing).__name__, name=str(thing.key), problem="spoilt")
            self.cluster.put(Unusable(type(thing), thing.key, bad, getattr(thing, "uid", "")))
            self.note_needs()

    def new_uid(self) -> str:
        self._uids += 1
        return f"uid-{self._uids}"

    def every(self, kind: type[Thing]) -> list[Thing]:
        return [thing for (its, _), thing in sorted(self.things.items(), key=lambda item: item[0][1]) if its is kind]

    def any(self, kind: type[Thing]) -> Thing | None:
        found = self.every(kind)
        return self.chance.choice(found) if found else None

    def any_stored(self) -> Assignment | None:
        stored = sorted(self.cluster.assignments.values(), key=lambda found: found.key)
        return self.chance.choice(stored) if stored else None

    def host(self, name: str) -> Host | None:
        found = self.things.get((Node, Key("", name)))
        return found.host if isinstance(found, Node) else None

    def host_of(self, stored: Assignment) -> Host | None:
        return stored.host or self.host(stored.node) or self._last_host.get(stored.node)

    # What should be

    def wanted(self) -> Iterator[Need]:
        """Which assignments there should be: of two identities of one name, the first binding's."""
        taken: set[Key] = set()
        for pod in self.every(Pod):
            assert isinstance(pod, Pod)
            if pod.finished or not pod.node or not pod.label:
                continue
            for binding in self.every(Binding):
                assert isinstance(binding, Binding)
                identity = self.things.get((Identity, binding.identity_key))
                if binding.selector != pod.label or not isinstance(identity, Identity):
                    continue
                apart = self.namespaced or identity.namespaced
                if apart and pod.namespace != identity.namespace:
                    continue
                name = f"{pod.name}-{pod.namespace}-{identity.name}"
                key = Key(identity.namespace if apart else "default", name)
                if key not in taken:
                    taken.add(key)
                    yield Need(pod.key, pod.node, self.host(pod.node), identity, binding, key)

    def note_needs(self) -> None:
        self.needs = {need: self.needs.get(need, self.now_s) for need in self.wanted()}
        for then_s, before in self.lost_updates:
            back = any(need.assignment == before.key and need.host == self.host_of(before) for need in self.needs)
            if back and self.now_s - then_s < UNREAD_S:
                self.blur(before, "back before an update without an answer was seen")

    # Azure

    def make_host(self, host: Host) -> None:
        if host not in self.foreign:
            self.foreign[host] = set()
            self.hosts.put(host, system_assigned=True)
            self.disturb(host)

    def remove_host(self, host: Host) -> None:
        """A VM is no more; one that is called like it later carries nothing."""
        if host.kind is HostKind.VM and host in self.foreign:
            self.note(f"remove VM {host.name}")
            self.hosts.remove(host)
            self.condemned.discard(host)
            del self.foreign[host]
            self.unclear = {where: why for where, why in self.unclear.items() if where[0] != host}

    def disturb(self, host: Host) -> None:
        """Somebody else changed *host*, which MIC cannot know at once."""
        self.disturbed_s[host] = self.now_s

    def blur(self, stored: Assignment, reason: str) -> None:
        """From now on nobody can know who put this identity on its host."""
        host, what = self.host_of(stored), stored.identity.host_resource
        if host is not None and what is not None:
            self.unclear[host, what] = reason


def same_client(name: str) -> str:
    """The client ID of an Azure identity, however its name is spelt."""
    return client_id(name.lower())


def letters(resources: frozenset[IdentityResource] | set[IdentityResource]) -> list[str]:
    return sorted(one.key.rpartition("/")[2] for one in resources)


ALL = tuple(resource(name) for name in (*NAMES, *STRANGERS))

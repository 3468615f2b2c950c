"""Random clusters, small enough that everything meets everything. A seed makes the same one each time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from random import Random

from podidentity_core.model import (
    Assignment,
    AssignmentState,
    Binding,
    Change,
    Gone,
    Identity,
    IdentityKind,
    Node,
    Pod,
    PodPhase,
    Seen,
    Thing,
    Unusable,
)
from podidentity_core.planning import Plan
from podidentity_core.reasons import Reason, because
from podidentity_core.testing.builders import (
    assignment,
    binding,
    client_id,
    exception_rule,
    identity,
    node,
    pod,
    scale_set,
    vm,
)
from podidentity_core.view import ClusterView

NAMESPACES = ("a", "b", "default")
LABELS = ("web", "db", "", None)
NODES = ("node-1", "node-2", "node-3", "node-4")
IDENTITIES = ("web", "db", "mq")


class Worlds:
    """Makes things and changes by chance."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)  # noqa: S311  # not for secrets

    def things(self) -> list[Thing]:
        """A whole cluster; of things with one name the last counts."""
        things: list[Thing] = [self.node(name) for name in NODES if self.chance.random() < 0.9]
        makers = (self.pod, self.pod, self.pod, self.identity, self.binding, self.binding, self.assignment)
        things += [self.chance.choice(makers)() for _ in range(self.chance.randrange(40))]
        return list({(type(thing), thing.key): thing for thing in things}.values())

    def change(self) -> Change:
        """One change of any kind of object."""
        thing = self.thing()
        kind = self.chance.randrange(8)
        if kind == 0:
            return Gone(type(thing), thing.key, getattr(thing, "uid", ""))
        if kind == 1:
            return Unusable(type(thing), thing.key, because(Reason.BAD_OBJECT, kind="X", name="x", problem="bad"))
        return Seen(thing)

    def thing(self) -> Thing:
        """One thing of any kind."""
        makers = (self.pod, self.identity, self.binding, self.assignment, exception_rule)
        return self.chance.choice((*makers, lambda: self.node(self.chance.choice(NODES))))()

    def node(self, name: str) -> Node:
        """A node on a VM of its own, on a shared scale set, or on nothing that can be used."""
        hosts = (vm(name), vm(name), scale_set("pool"), scale_set("POOL"), scale_set("other"), None)
        host = self.chance.choice(hosts)
        return node(name, host=host) if host else Node(name, None, "the providerID is empty")

    def pod(self) -> Pod:
        """A pod, here and there unscheduled, finished or unlabelled."""
        return pod(
            f"pod-{self.chance.randrange(5)}",
            namespace=self.chance.choice(NAMESPACES),
            uid=f"uid-{self.chance.randrange(2)}",
            node=self.chance.choice((*NODES, *NODES, "")),
            label=self.chance.choice((*LABELS, "web", "db")),
            phase=self.chance.choice((*[PodPhase.RUNNING] * 5, *PodPhase)),
        )

    def identity(self) -> Identity:
        """An identity; several share one Azure identity, and some need none on the host."""
        return identity(
            self.chance.choice(IDENTITIES),
            namespace=self.chance.choice(NAMESPACES),
            resource_name=self.chance.choice((*IDENTITIES, "WEB")),
            client=client_id(self.chance.choice(IDENTITIES)),
            namespaced=self.chance.random() < 0.2,
            kind=self.chance.choice((*[IdentityKind.USER_ASSIGNED] * 5, *IdentityKind)),
        )

    def binding(self) -> Binding:
        """A binding, perhaps to an identity that does not exist."""
        return binding(
            f"binding-{self.chance.randrange(4)}",
            namespace=self.chance.choice(NAMESPACES),
            identity_name=self.chance.choice(IDENTITIES),
            selector=self.chance.choice(("web", "db", "x", "")),
        )

    def assignment(self) -> Assignment:
        """A stored assignment of any age, also of pods and identities that are long gone."""
        return assignment(
            self.pod(),
            self.identity(),
            self.binding(),
            state=self.chance.choice(tuple(AssignmentState)),
            node=self.chance.choice((*NODES, "node-9")),
            namespaced=self.chance.random() < 0.2,
            deleting=self.chance.random() < 0.1,
            preexisting=self.chance.random() < 0.1,
            host=self.chance.choice((None, None, vm(self.chance.choice(NODES)), scale_set("pool"))),
        )

    def shuffled(self, things: Iterable[Thing]) -> list[Thing]:
        """The same things in another order."""
        order = list(things)
        self.chance.shuffle(order)
        return order


def carried_out(plan: Plan, things: Iterable[Thing]) -> Iterator[Thing]:
    """Yield *things* as they are once *plan* has been carried out and every host has settled."""
    gone = {assignment.key for assignment in plan.delete} | {update.stored.key for update in plan.update}
    yield from (thing for thing in things if not isinstance(thing, Assignment) or thing.key not in gone)
    for wanted in (*plan.create, *(update.wanted for update in plan.update)):
        yield replace(wanted, state=AssignmentState.ASSIGNED, uid=f"uid-of-new-{wanted.name}", resource_version="1")


def things_of(view: ClusterView) -> list[Thing]:
    """All things that count in *view*."""
    nodes = filter(None, map(view.node, (*NODES, "node-9")))
    groups = (view.pods, view.identities, view.bindings, view.assignments)
    return [*nodes, *(thing for group in groups for thing in group.values())]

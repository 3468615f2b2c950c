"""What people, Kubernetes and Azure do to a cluster, each thing as one function of the world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from podidentity_core.model import (
    Binding,
    Identity,
    IdentityKind,
    Key,
    Node,
    Pod,
    PodPhase,
)
from podidentity_core.resource_ids import Host, HostKind
from podidentity_core.testing.builders import binding, identity, pod, resource
from tests.simulation.world import FORMS, NAMES, NAMESPACES, STRANGERS, World, same_client

# Pods


def put_pod(world: World) -> None:
    """A pod comes, or comes back elsewhere or with another label."""
    chance = world.chance
    on = world.any(Node)
    if isinstance(on, Node):
        key = Key(chance.choice(NAMESPACES), f"p{chance.randrange(4)}")
        label = chance.choice((*NAMES, *NAMES, "x", None))
        world.put(pod(key.name, namespace=key.namespace, uid=world.new_uid(), node=on.name, label=label))


def move_pod(world: World) -> None:
    """A pod of a StatefulSet comes back on another node."""
    found, on = world.any(Pod), world.any(Node)
    if isinstance(found, Pod) and isinstance(on, Node):
        world.former.append(found)
        if world.chance.random() < 0.5:
            world.remove(found)
        world.put(replace(found, uid=world.new_uid(), node=on.name, phase=PodPhase.RUNNING))


def move_back(world: World) -> None:
    """A pod comes back on the node where it was before."""
    former = [one for one in world.former if isinstance(world.things.get((Pod, one.key)), Pod) and world.host(one.node)]
    if former:
        world.put(replace(world.chance.choice(former[-2:]), uid=world.new_uid()))


def remove_pod(world: World) -> None:
    """A pod goes."""
    world.remove(world.any(Pod))


def finish_pod(world: World) -> None:
    """A pod has done its work."""
    if isinstance(found := world.any(Pod), Pod):
        world.put(replace(found, phase=world.chance.choice((PodPhase.SUCCEEDED, PodPhase.FAILED))))


# Bindings and identities


def put_binding(world: World) -> None:
    """A binding comes, or selects others, or names another identity."""
    name, of, selector = (world.chance.choice(NAMES) for _ in range(3))
    world.put(binding(name, namespace=_namespace(world), identity_name=of, selector=selector))


def remove_binding(world: World) -> None:
    """A binding goes."""
    world.remove(world.any(Binding))


def put_identity(world: World) -> None:
    """An identity comes, or stands for another one of Azure, perhaps in other letters, or for none."""
    chance = world.chance
    name = chance.choice(NAMES)
    world.put(
        identity(
            chance.choice(NAMES),
            namespace=_namespace(world),
            resource_name=chance.choice((name, name, name.upper())),
            client=same_client(name),
            namespaced=chance.random() < 0.2,
            kind=chance.choice((*[IdentityKind.USER_ASSIGNED] * 6, IdentityKind.SERVICE_PRINCIPAL)),
        )
    )


def remove_identity(world: World) -> None:
    """An identity goes."""
    world.remove(world.any(Identity))


def spoil_identity(world: World) -> None:
    """Somebody edits an identity, so that it cannot be used any more."""
    world.spoil(world.any(Identity))


def annotate(world: World) -> None:
    """Somebody edits what nobody reads; the version changes."""
    if (found := world.any(world.chance.choice((Identity, Binding)))) is not None:
        world.put(found)


# Nodes and hosts


def put_node(world: World) -> None:
    """A node comes back."""
    name = world.chance.choice(sorted(FORMS))
    if world.host(name) is None:
        world.put(FORMS[name][0])


def change_host(world: World) -> None:
    """A node of the same name stands on another host, or is not told on which."""
    if isinstance(found := world.any(Node), Node):
        _blur_originals(world, found.name)
        world.put(world.chance.choice(FORMS[found.name]))
        _blur_originals(world, found.name)


def remove_node(world: World) -> None:
    """A node goes, its pods before or after it; its VM too, while a scale set stays."""
    if not isinstance(found := world.any(Node), Node):
        return
    if world.chance.random() < 0.7:
        for one in world.every(Pod):
            if isinstance(one, Pod) and one.node == found.name:
                world.remove(one)
    _blur_originals(world, found.name)
    world.remove(found)
    if found.host is not None and found.host not in {world.host(name) for name in FORMS}:
        world.remove_host(found.host)


def condemn(world: World) -> None:
    """Azure begins to remove a VM, which takes no more writes."""
    found = world.any(Node)
    if isinstance(found, Node) and found.host is not None and found.host.kind is HostKind.VM:
        world.note(f"{found.host.name} is being deleted")
        world.hosts.put(found.host, *world.hosts.listed(found.host), system_assigned=True, deleting=True)
        world.condemned.add(found.host)
        world.disturb(found.host)


def _blur_originals(world: World, node: str) -> None:
    """The original noted no hosts: what it did on a node is known only as long as the node stays what it is."""
    for left in world.originals:
        if left.node == node:
            world.blur(left, "the original noted no host")


# Other people's hands


def take_off(world: World) -> None:
    """Somebody takes an identity of MIC off a host."""
    host = _any_host(world)
    ours = sorted(world.hosts.listed(host) - world.foreign[host], key=str)
    if ours and host not in world.condemned:
        taken = world.chance.choice(ours)
        world.note(f"take {taken.text[-1]} off {host.name}")
        world.hosts.put(host, *(world.hosts.listed(host) - {taken}), system_assigned=True)
        world.disturb(host)


def pre_empt(world: World) -> None:
    """Somebody puts an identity of his own on a host, in the midst of whatever MIC is doing there."""
    host, what = _any_host(world), resource(world.chance.choice(STRANGERS))
    if what not in world.hosts.listed(host) and host not in world.condemned:
        world.note(f"somebody puts {what.text[-10:]} on {host.name}")
        world.hosts.preempt(host, what)
        world.foreign[host].add(what)


def bring(world: World) -> None:
    """Somebody puts an identity on a host that MIC may need there some day, and does not now."""
    host, what = _any_host(world), resource(world.chance.choice(NAMES))
    claimed = any(
        world.host_of(stored) == host and stored.identity.host_resource == what
        for stored in world.cluster.assignments.values()
    )
    needed = any((need.host, need.what) == (host, what) for need in world.needs)
    if claimed or needed or what in world.hosts.listed(host) or host in world.condemned:
        return
    world.note(f"somebody puts {what.text[-1]} on {host.name}")
    world.hosts.put(host, *world.hosts.listed(host), what, system_assigned=True)
    world.foreign[host].add(what)
    world.unclear[host, what] = "brought while MIC worked"


def refuse(world: World) -> None:
    """Azure refuses an identity from now on, with its name or without."""
    world.hosts.refuse(resource(world.chance.choice(NAMES)), named=world.chance.random() < 0.6)


def accept(world: World) -> None:
    """Azure takes an identity again."""
    world.hosts.accept(resource(world.chance.choice(NAMES)))


def kubectl_delete(world: World) -> None:
    """Somebody deletes an assignment; MIC's finalizer keeps it for now."""
    if (found := world.any_stored()) is not None:
        world.note(f"kubectl delete azureassignedidentity {found.name}")
        world.cluster.put(replace(found, deleting=True))


def remove_finalizer(world: World) -> None:
    """Somebody deletes an assignment and takes MIC's finalizer away: the memory of what is on the host is lost."""
    if (found := world.any_stored()) is not None:
        world.note(f"remove finalizer of {found.name}")
        world.blur(found, "finalizer removed by hand")
        world.cluster.remove(found)


def touch(world: World) -> None:
    """Somebody annotates an assignment: MIC's next update of it conflicts."""
    if (found := world.any_stored()) is not None:
        world.cluster.put(found)


def _namespace(world: World) -> str:
    return world.chance.choice(("default", "default", "shop"))


def _any_host(world: World) -> Host:
    return world.chance.choice(sorted(world.foreign, key=str))


Happening = Callable[[World], None]

HAPPENINGS: tuple[Happening, ...] = (
    *[put_pod] * 8,
    *[move_pod] * 4,
    *[move_back] * 3,
    *[remove_pod] * 4,
    finish_pod,
    *[put_binding] * 2,
    remove_binding,
    *[put_identity] * 3,
    remove_identity,
    spoil_identity,
    annotate,
    remove_node,
    *[put_node] * 2,
    *[change_host] * 2,
    condemn,
    take_off,
    pre_empt,
    bring,
    refuse,
    *[accept] * 2,
    *[kubectl_delete] * 2,
    remove_finalizer,
    touch,
)

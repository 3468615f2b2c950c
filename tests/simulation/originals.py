"""What the original has left in a cluster: assignments without notes, and identities on hosts."""

from __future__ import annotations

from podidentity_core.matching import assignment_key
from podidentity_core.model import Assignment, AssignmentState, Binding, Identity, Pod
from podidentity_core.testing.builders import binding, identity, pod
from tests.simulation.world import FORMS, NAMES, NAMESPACES, World, same_client


def leave_originals(world: World) -> None:
    """Let there be what the original has left: assignments without notes, of any state and age, and its identities."""
    for _ in range(world.chance.randrange(8)):
        made = _original(world)
        if made.key in world.cluster.assignments:
            continue
        world.note(f"the original has left {made}")
        world.cluster.put(made)
        world.originals.append(made)
        host, what = world.host(made.node), made.identity.host_resource
        if host is None or what is None:
            continue
        if what in world.foreign[host]:
            world.unclear[host, what] = "the original claimed it"
        sure = made.state in (AssignmentState.ASSIGNED, AssignmentState.UNKNOWN)
        if sure or world.chance.random() < 0.5:
            world.hosts.put(host, *world.hosts.listed(host), what, system_assigned=True)


def _original(world: World) -> Assignment:
    """An assignment of a pod that is or is no more, to an identity and by a binding as they are or once were."""
    chance = world.chance
    found, link = world.any(Pod), world.any(Binding)
    if not isinstance(found, Pod) or not isinstance(link, Binding) or chance.random() < 0.2:
        found = pod(f"p{chance.randrange(4)}", namespace=chance.choice(NAMESPACES), node=chance.choice(sorted(FORMS)))
        link = binding("gone", identity_name=chance.choice(NAMES))
    of = world.things.get((Identity, link.identity_key))
    if not isinstance(of, Identity) or chance.random() < 0.2:
        name = chance.choice(NAMES)
        of = identity(link.identity_name, namespace=link.namespace, resource_name=name, client=same_client(name))
    key = assignment_key(found.key, of, namespaced=world.namespaced and chance.random() < 0.8)
    state = chance.choice((*[AssignmentState.ASSIGNED] * 3, *AssignmentState))
    return Assignment(key.namespace, key.name, found.key, found.node, of, link, state=state)

"""A controller of your own: it plans with podidentity_core, and writes through whatever implements a port."""

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from podidentity_core.model import Binding, Identity, Node, Pod, PodPhase, Thing
from podidentity_core.planning import HostNeeds, plan
from podidentity_core.ports import HostIdentities
from podidentity_core.resource_ids import host_of, parse_identity_resource
from podidentity_core.view import ClusterView


def things(inventory: dict[str, list[dict[str, Any]]]) -> Iterator[Thing]:
    """Read your own inventory into the core's values."""
    for node in inventory["nodes"]:
        yield Node(node["name"], host_of(node["providerID"]))
    for team in inventory["teams"]:
        resource = parse_identity_resource(team["resourceID"])
        yield Identity(team["name"], "main", client_id=team["clientID"], host_resource=resource)
        yield Binding(team["name"], "main", identity_name="main", selector=team["name"])
    for pod in inventory["pods"]:
        yield Pod(pod["team"], pod["name"], pod["uid"], pod["node"], label=pod["team"], phase=PodPhase.RUNNING)


def needs(cluster: Iterable[Thing]) -> tuple[HostNeeds, ...]:
    """What each host must carry."""
    return plan(ClusterView.of(cluster)).hosts


async def apply(cluster: Iterable[Thing], hosts: HostIdentities) -> None:
    """Put on each host what its pods need; nothing is taken away."""
    for host in needs(cluster):
        await hosts.change(host.host, add=host.needed | host.planned, remove=())


if __name__ == "__main__":
    for host in needs(things(json.load(sys.stdin))):
        print(f"{host.host.name} needs {', '.join(sorted(str(r).rpartition('/')[2] for r in host.planned))}")

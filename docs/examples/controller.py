"""A controller of your own: it plans with podidentity_core, and does with the plan what it likes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from podidentity_core.model import Binding, Identity, Node, Pod, PodPhase, Seen, Thing
from podidentity_core.planning import Planner
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


def steps(inventory: Iterable[Thing]) -> Iterator[str]:
    """Say what would have to be done; nothing is written."""
    view = ClusterView()
    planner = Planner(view)
    for thing in inventory:
        planner.refresh(view.apply(Seen(thing)))
    for host in planner.plan().hosts:
        for resource in sorted(host.needed | host.planned, key=str):
            yield f"{host.host.name} needs {str(resource).rpartition('/')[2]}"


if __name__ == "__main__":
    print("\n".join(steps(things(json.load(sys.stdin)))))

"""What planning costs in a large cluster: 10,000 pods, 500 bindings, 100 nodes in 4 scale sets."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from podidentity_core.model import Assignment, Binding, Identity, Node, Pod, PodPhase, Seen, Thing
from podidentity_core.planning import Plan, Planner, plan
from podidentity_core.testing import builders
from podidentity_core.view import ClusterView
from tests.bench.figures import Figure, Timing, timed

PODS = 10_000
BINDINGS = 500
NODES = 100
SCALE_SETS = 4
RUNS = 9
CHANGES = 500
"""How many single changes are timed, each of another pod."""
_MIB = 2**20


def run() -> list[Figure]:
    """Measure everything."""
    return [*_whole(), *_single(), _memory()]


def _node(number: int) -> Node:
    return builders.vmss_node(f"aks-pool-{number:06}", f"pool-{number % SCALE_SETS}", number // SCALE_SETS)


def _identity(number: int) -> Identity:
    return builders.identity(f"identity-{number}", namespace="apps")


def _binding(number: int) -> Binding:
    return builders.binding(
        f"binding-{number}", namespace="apps", identity_name=f"identity-{number}", selector=f"app-{number}"
    )


def _pod(number: int) -> Pod:
    node, label = f"aks-pool-{number % NODES:06}", f"app-{number % BINDINGS}"
    return builders.pod(f"app-{number:05}", namespace="apps", node=node, label=label, ips=(f"10.0.{number}",))


def _assignment(number: int) -> Assignment:
    """The assignment of pod *number* as a watch brings it: equal to what is wanted, and no object shared with it."""
    kind = number % BINDINGS
    stored = builders.assignment(_pod(number), _identity(kind), _binding(kind))
    return replace(stored, host=_node(number % NODES).host)


def cluster(*, assigned: bool) -> Iterator[Thing]:
    """Make the cluster, with an assignment for each pod or with none."""
    yield from map(_node, range(NODES))
    yield from map(_identity, range(BINDINGS))
    yield from map(_binding, range(BINDINGS))
    yield from map(_pod, range(PODS))
    if assigned:
        yield from map(_assignment, range(PODS))


def _whole() -> Iterator[Figure]:
    for assigned, name in ((False, "no pod assigned yet"), (True, "all pods assigned")):
        things = tuple(cluster(assigned=assigned))
        view = ClusterView.of(things)
        taking_in = timed([partial(ClusterView.of, things)] * RUNS)
        planning = timed([partial(plan, view)] * RUNS)

        _check(plan(view), create=0 if assigned else PODS)
        yield _figure(f"whole plan, {name}", planning, "< 150")
        yield _figure(f"whole cluster taken in, {name}", taking_in, "")


def _check(found: Plan, *, create: int) -> None:
    """Raise unless the measured plan did the work that the figure's name says."""
    done = (len(found.create), len(found.update), len(found.delete), len(found.skipped), len(found.hosts))
    if done != (create, 0, 0, 0, SCALE_SETS):
        raise AssertionError(f"the plan is another one than was to be measured: {done}")


def _single() -> Iterator[Figure]:
    view = ClusterView.of(cluster(assigned=True))
    planner = Planner(view)
    planner.refresh(view.concerned_pods())
    changes: tuple[tuple[str, Callable[[Pod], Pod]], ...] = (
        ("phase", lambda pod: replace(pod, phase=PodPhase.SUCCEEDED)),
        ("label", lambda pod: replace(pod, label="app-0")),
    )
    pods = [pod for pod in view.pods.values() if pod.label != "app-0"]
    for number, (what, change) in enumerate(changes):
        changed = [change(pod) for pod in pods[number * CHANGES : (number + 1) * CHANGES]]

        timing = timed(partial(_take_in, view, planner, pod) for pod in changed)

        if not all(planner.pod_plan(pod.key).delete for pod in changed):
            raise AssertionError(f"a change of the {what} changed no plan")
        yield _figure(f"one changed pod ({what})", timing, "< 1")


def _take_in(view: ClusterView, planner: Planner, pod: Pod) -> object:
    return planner.refresh(view.apply(Seen(pod)))


def _figure(name: str, timing: Timing, budget: str) -> Figure:
    slowest_ms = max(timing.wall_s) * 1000
    note = f"{timing.cpu_ms:.3g} ms CPU, slowest of {len(timing.wall_s)}: {slowest_ms:.3g} ms"
    return Figure(name, timing.wall_ms, "ms", budget, note)


def _memory() -> Figure:
    """What the view and the plans occupy; what they are made from is theirs, too."""
    tracemalloc.start()
    view = ClusterView.of(cluster(assigned=True))
    planner = Planner(view)
    planner.refresh(view.concerned_pods())
    occupied, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Figure(
        "view and plans in memory, all pods assigned", occupied / _MIB, "MiB", "", "all of MIC may have 160 MB"
    )

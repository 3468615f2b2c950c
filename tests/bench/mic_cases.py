"""What is measured of MIC: bursts of pods, a rolling update, the end of all pods."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

from tests.bench.figures import Figure
from tests.bench.mic_bed import Bed, Scene, Used, bed
from tests.bench.mic_server import ApiServer

PATIENCE_S = 300.0
PODS_PER_S, REPLACED_PER_S = 100.0, 50.0
GRACE_S = 60.0
"""The default of --identity-grace-period."""
ONE = Scene(1, 1, 2, 2)
SMALL = Scene(24, 1, 24, 2)
LARGE = Scene(1000, 20, 50, 1)
SETS = Scene(1000, 100, 50, 1, scale_sets=5)
SLOW = Scene(1000, 20, 50, 30)
ROLLED = Scene(500, 20, 50, 1)
LARGEST = Scene(5000, 100, 50, 1, scale_sets=5)


async def measure(real: ApiServer | None) -> AsyncIterator[Figure]:
    """Measure all cases with MIC's default settings, on the *real* server or else on the sandbox's."""
    async with bed(ONE, real) as made:
        yield (await burst(made))[0]
        for figure in await another(made):
            yield figure
    for scene in (SMALL, SETS, SLOW, LARGEST):
        async with bed(scene, real) as made:
            for figure in await burst(made):
                yield figure
    async with bed(LARGE, real) as made:
        for figure in [*await burst(made), *await removal(made)]:
            yield figure
    async with bed(ROLLED, real) as made:
        await burst(made)
        for figure in await rolling_update(made):
            yield figure


async def burst(made: Bed) -> list[Figure]:
    """Create all pods, a hundred a second."""
    scene, before, began_s = made.scene, made.used(), time.monotonic()
    created_s = await made.client.create(made.pods(), per_s=PODS_PER_S)
    assigned = made.assignments.assigned_s
    await made.assignments.until(lambda _: len(assigned) == scene.pods, within_s=PATIENCE_S)
    used = made.used() - before
    last_s = max(created_s.values())
    waits_s = sorted(assigned[name] - created_s[name] for name in created_s)
    limit_s = scene.arm_s + (3 if scene.pods > 24 else 0.5)
    note = f"pods created in {last_s - began_s:.1f} s; a pod waits {waits_s[-1]:.1f} s at most, median"
    note += f" {waits_s[len(waits_s) // 2]:.1f} s"
    took_s = max(assigned.values()) - last_s
    return [
        Figure(f"all assigned: {scene}", took_s, "s", f"<= {limit_s:g}", note),
        *_used(made, used, scene.pods, "<= 2"),
    ]


async def another(made: Bed) -> list[Figure]:
    """Create one more pod, with an identity of its own, when MIC has called Azure before."""
    before, began_s = made.used(), time.monotonic()
    await made.client.create([made.pod("another", 0, 1)])
    assigned_s = await made.assignments.until(lambda seen: "another" in seen.assigned_s, within_s=PATIENCE_S)
    budget = f"<= {made.scene.arm_s + 0.5:g}"
    used = made.used() - before
    note = "Azure has been called before"
    return [Figure("  another pod", assigned_s - began_s, "s", budget, note), *_used(made, used, 1, "<= 2")]


async def rolling_update(made: Bed) -> list[Figure]:
    """Replace each pod by one with the same identity on the next node of its scale set."""
    scene, before, began_s = made.scene, made.used(), time.monotonic()
    next_node = {node.name: number for number, node in enumerate(made.sandbox.options.nodes, start=1)}
    new = {f"new-{number}" for number in range(scene.pods)}
    await made.client.replace_pods(
        (
            (
                old["metadata"]["name"],
                made.pod(f"new-{number}", next_node[old["spec"]["nodeName"]], number % scene.identities),
            )
            for number, old in enumerate(made.pods())
        ),
        per_s=REPLACED_PER_S,
    )
    last_s = time.monotonic()
    assigned, pods = made.assignments.assigned_s, made.assignments.pods
    all_assigned_s = await made.assignments.until(lambda _: new <= assigned.keys(), within_s=PATIENCE_S)
    gone_s = await made.assignments.until(lambda _: len(pods) == len(new), within_s=PATIENCE_S)
    used = made.used() - before
    name = f"rolling update of {scene}"
    note = f"replaced in {last_s - began_s:.1f} s"
    return [
        Figure(f"{name}: new ones assigned", max(0.0, all_assigned_s - last_s), "s", "<= 3", note),
        Figure("  old ones gone", max(0.0, gone_s - last_s), "s", "", "after the last pod was replaced"),
        Figure("  ARM writes", used.arm["PATCH"], "", "= 0"),
        *_used(made, used, scene.pods, ""),
    ]


async def removal(made: Bed) -> list[Figure]:
    """Delete all pods."""
    scene, before, began_s = made.scene, made.used(), time.monotonic()
    await made.client.delete("Pod", [pod["metadata"]["name"] for pod in made.pods()])
    last_s = time.monotonic()
    pods = made.assignments.pods
    gone_s = await made.assignments.until(lambda _: not pods, within_s=PATIENCE_S)
    used = made.used() - before
    note = f"pods deleted in {last_s - began_s:.1f} s; {GRACE_S:.0f} s of it are --identity-grace-period"
    return [
        Figure(f"all assignments gone: {scene}", gone_s - last_s, "s", "", note),
        *_used(made, used, scene.pods, ""),
    ]


def _used(made: Bed, used: Used, pods: int, budget: str) -> Iterator[Figure]:
    assignments = used.of("azureassignedidentities")
    verbs = ", ".join(f"{verb} {n:,}" for (name, verb), n in used.writes.items() if name == "azureassignedidentities")
    others = f"meanwhile events {used.of('events'):,} (dropped {made.dropped_events():,}), lease {used.of('leases')}"
    yield Figure("  writes of assignments, each pod", assignments / pods, "", budget, f"{verbs}; {others}")
    arm = ", ".join(f"{method} {n}" for method, n in used.arm.items())
    cpu = f"API server {used.server_cpu_s:.1f} s, benchmark {used.own_cpu_s:.1f} s; ARM {arm}"
    yield Figure("  MIC's CPU", used.mic_cpu_s, "s", "", cpu)
    yield Figure("  MIC's memory (PSS)", made.memory_mb(), "MB", "< 160", "")

"""MIC, as real processes, while the API server, Azure or MIC itself fails: no pod ever loses its identity by that."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from apps.sandbox.faults import Fault
from apps.sandbox.hosts import Azure, Host, Operation
from apps.sandbox.identity_rules import failed_identity_operation
from apps.sandbox.options import scale_set_nodes
from apps.sandbox.resources import PODS
from apps.sandbox.status import StatusError
from tests.apps.daemons import Daemon, until
from tests.apps.stage import Stage, now_s, stage

LEASE_S = 2.0
SHORT_LEASE = f"--leader-election-duration={LEASE_S:.0f}s"
SYNCED = "pod cache synchronized"
LEASES = "/leases/"
ASSIGNMENTS = "/azureassignedidentities"
PATIENCE_S = 90.0
"""How long things may take to settle on a busy machine; waits after failures grow to a minute."""


@dataclass
class Guarded:
    """A sandbox whose Azure notes every removal of an identity that a running pod is told to use."""

    stage: Stage
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        azure = self.stage.sandbox.azure
        change = azure.change

        def watched(host: Host, body: dict[str, Any], caller: str) -> Operation:
            before = host.identity.folded
            operation = change(host, body, caller)
            removed = before - host.identity.folded
            self.violations.extend(f"{identity} of {pod}" for pod, identity in self.in_use(host) if identity in removed)
            return operation

        azure.change = watched  # type: ignore[method-assign]

    def in_use(self, host: Host) -> list[tuple[str, str]]:
        """The running pods on *host* with an assignment in `Assigned`, and the resource ID in it, in lower case.

        Not those that have just come: no controller can recall a write that was on its way to Azure then.
        """
        found = []
        for body in self.stage.sandbox.cluster.objects("azureassignedidentities"):
            spec = body["spec"]
            if body["status"]["status"] == "Assigned" and self._runs(spec) and self._host_of(spec["nodename"]) is host:
                found.append((spec["pod"], spec["azureIdentityRef"]["spec"]["resourceID"].lower()))
        return found

    def _runs(self, spec: dict[str, Any]) -> bool:
        try:
            pod = self.stage.sandbox.store.get(PODS, spec["podNamespace"], spec["pod"]).body
        except StatusError:
            return False
        running = pod.get("status", {}).get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
        created = datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
        has_just_come = datetime.now(UTC) - created < timedelta(seconds=2)  # the time is cut to the second
        return running and not has_just_come and pod["spec"].get("nodeName") == spec["nodename"]

    def _host_of(self, node: str) -> Host:
        (spec,) = (spec for spec in self.stage.sandbox.options.nodes if spec.name == node)
        return self.stage.sandbox.azure.host(spec.host_id)

    def pods(self) -> dict[str, tuple[str, str]]:
        """Label and node of every pod that has a node, by name."""
        return {
            body["metadata"]["name"]: (body["metadata"]["labels"]["aadpodidbinding"], body["spec"]["nodeName"])
            for body in self.stage.sandbox.cluster.objects("pods")
        }

    def unsettled(self) -> list[str]:
        """What is not yet as it must be in the end; the identity of a pod has the name of its label."""
        pods, found = self.pods(), self.stage.assignments
        wanted = {f"{name}/{label}": "Assigned" for name, (label, _) in pods.items()}
        wrong = [f"assignment {key}" for key in found.keys() | wanted if found.get(key) != wanted.get(key)]
        for host in self.stage.sandbox.azure.hosts.values():
            needed = {label for label, node in pods.values() if self._host_of(node) is host}
            for what, ids in (("on", host.identity.folded), ("served by", host.served)):
                there = {entry.rpartition("/")[2] for entry in ids}
                wrong += [f"{name} {what} {host.resource_id.rpartition('/')[2]}" for name in needed ^ there]
        return wrong

    async def settled(self, within_s: float = PATIENCE_S) -> None:
        """Return when every pod has its identity and nothing else is left, in the cluster and in Azure."""
        until_s = now_s() + within_s
        self.stage.forget_polls()
        while wrong := self.unsettled():
            assert now_s() < until_s, wrong
            await asyncio.sleep(0.02)
        assert self.violations == []


@pytest_asyncio.fixture
async def guarded() -> AsyncIterator[Guarded]:
    async with stage(nodes=scale_set_nodes(2)) as started:
        yield Guarded(started)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at_work() -> AsyncIterator[tuple[Guarded, Daemon]]:
    """One MIC for all tests about the API server; each leaves everything as it was."""
    async with stage(nodes=scale_set_nodes(2)) as started:
        mic = await started.mic(SHORT_LEASE)
        await mic.line(SYNCED)
        await started.first_work()
        yield Guarded(started), mic


@pytest.fixture(autouse=True)
def _no_fault_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "at_work" in request.fixturenames:
        request.getfixturevalue("at_work")[0].stage.sandbox.faults.clear()


AWAY = {
    "closed": Fault("kube", action="close", times=None),
    "hanging": Fault("kube", action="hang", times=None),
    "503": Fault("kube", status=503, times=None),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "away_s", [LEASE_S / 4, LEASE_S * 1.25], ids=["shorter than the lease", "longer than the lease"]
)
@pytest.mark.parametrize("how", AWAY)
async def test_after_the_api_server_was_away_everything_that_happened_meanwhile_is_done(
    at_work: tuple[Guarded, Daemon], how: str, away_s: float
) -> None:
    guarded, mic = at_work
    scene, server = guarded.stage, guarded.stage.sandbox.kube_tls_url
    stays, goes, comes = (f"{name}-{how}-{away_s:.0f}" for name in ("stays", "goes", "comes"))
    for name in (stays, goes, comes):
        scene.identity(name)
    await scene.pod(stays)
    await scene.pod(goes)
    await guarded.settled()

    scene.sandbox.faults.add(replace(AWAY[how]))
    scene.sandbox.cut(server)
    away_since_s = now_s()
    await scene.pod(comes)
    scene.delete_pod(goes)
    await asyncio.sleep(away_s)
    assert scene.patches(away_since_s) == []
    scene.sandbox.faults.clear()
    scene.sandbox.cut(server)  # who comes back knows nothing of the calls that hang
    await guarded.settled()

    assert mic.process.returncode is None


@pytest.mark.asyncio(loop_scope="module")
async def test_writes_that_take_two_seconds_hold_up_nothing_but_themselves(at_work: tuple[Guarded, Daemon]) -> None:
    """Pods go, come, and come back under their names while what MIC has written about them is still under way."""
    guarded, mic = at_work
    scene = guarded.stage
    for name in ("slow-goes", "slow-back", "slow-comes"):
        scene.identity(name)
    await scene.pod("slow-goes")
    await scene.pod("slow-back")
    await guarded.settled()
    lines = len(mic.lines)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        scene.sandbox.faults.add(Fault("kube", method=method, match=ASSIGNMENTS, latency_s=2.0, times=None))

    scene.delete_pod("slow-goes")
    scene.delete_pod("slow-back")
    await until(lambda: "slow-back" not in guarded.pods(), "the end of the pod")
    await asyncio.sleep(random.Random(6).uniform(0.1, 0.9))  # noqa: S311  # into the middle of the writes
    await scene.pod("slow-back")
    await scene.pod("slow-comes")
    await guarded.settled()

    assert "lost leader lease" not in "\n".join(mic.lines[lines:])


@pytest.mark.parametrize("action", ["", "close"], ids=["ended", "cut"])
async def test_watches_that_end_after_each_event_delay_each_by_less_than_a_second(
    guarded: Guarded, action: str
) -> None:
    """Three pods cost about nine events, which are read one after the other."""
    scene = guarded.stage
    mic = await scene.mic()
    await mic.line(SYNCED)
    await scene.first_work()
    scene.sandbox.faults.add(Fault("kube", method="GET", match="watch=", cut_after=1, action=action, times=None))
    scene.sandbox.cut(scene.sandbox.kube_tls_url)
    for name in ("watched-0", "watched-1", "watched-2"):
        scene.identity(name)
        await scene.pod(name)

    await guarded.settled(within_s=12.0)


async def test_a_host_that_hangs_does_not_hold_up_another() -> None:
    nodes = (*scale_set_nodes(1), *scale_set_nodes(1, "aks-pool2-12345678-vmss"))
    async with stage(nodes=nodes) as both:
        guarded = Guarded(both)
        mic = await both.mic()
        await mic.line(SYNCED)
        await both.first_work()
        without_s = await time_to_assign(both, [f"before-{number}" for number in range(3)], nodes[0].name)

        both.sandbox.faults.add(Fault("arm", match="aks-pool2", action="hang", times=None))
        both.identity("hangs")
        await both.pod("hangs", node=nodes[1].name)
        await until(lambda: "updating" in mic.output)
        with_s = await time_to_assign(both, [f"beside-{number}" for number in range(3)], nodes[0].name)

        print(
            f"three pods had their identities {with_s:.2f} s after their start, and {without_s:.2f} s without trouble"
        )
        assert both.assignments.get("hangs/hangs") != "Assigned"
        assert with_s < without_s * 2 + 2.0
        both.sandbox.faults.clear()
        assert guarded.violations == []


async def time_to_assign(stage: Stage, names: Sequence[str], node: str) -> float:
    """Start pods one after the other, each when the former has its identity; return the longest time of one."""
    longest_s = 0.0
    for name in names:
        stage.forget_polls()
        stage.identity(name)
        began_s = now_s()
        await stage.pod(name, node=node)
        await until(partial(is_assigned, stage, name), name)
        longest_s = max(longest_s, now_s() - began_s)
    return longest_s


def is_assigned(stage: Stage, name: str) -> bool:
    return stage.assignments.get(f"{name}/{name}") == "Assigned"


def stored_assignments(stage: Stage) -> Sequence[dict[str, Any]]:
    return stage.sandbox.cluster.objects("azureassignedidentities")


def name_nobody(azure: Azure, bad: str) -> None:
    """Let Azure refuse every change that adds *bad*, without saying which identity it is about."""
    checked = azure._check

    def check(host: Host, ids: Sequence[str], caller: str) -> None:
        if bad.lower() in {entry.lower() for entry in ids}:
            raise failed_identity_operation(host.resource_id, "BadRequest", "An identity was not found.")
        checked(host, ids, caller)

    azure._check = check  # type: ignore[method-assign]


@pytest.mark.parametrize("how", ["FailedIdentityOperation", "LinkedAuthorizationFailed", "nobody is named"])
async def test_one_identity_that_azure_refuses_for_good_costs_the_others_nothing(guarded: Guarded, how: str) -> None:
    scene = guarded.stage
    names = [f"good-{number}" for number in range(7)]
    bad = scene.identity("bad").resource_id
    if how == "nobody is named":
        name_nobody(scene.sandbox.azure, bad)
    else:
        scene.sandbox.azure.refuse(bad, how)
    for name in names:
        scene.identity(name)
        await scene.pod(name)
    await scene.pod("bad")

    mic = await scene.mic("--update-user-msi-retry-interval=100ms")
    await until(lambda: all(scene.assignments.get(f"{name}/{name}") == "Assigned" for name in names), "the good ones")
    await scene.pod("later", "good-0")
    await until(lambda: scene.assignments.get("later/good-0") == "Assigned", "a later pod")
    await asyncio.sleep(1.0)  # for writes that there must not be

    tried = len(scene.sandbox.faults.seen("arm", "PATCH", "/virtualMachineScaleSets/"))
    print(f"{how}: {tried} writes")
    assert scene.assignments["bad/bad"] == "Created"
    noted = {body["spec"]["pod"]: body["metadata"]["annotations"] for body in stored_assignments(scene)}
    assert noted["bad"]["aadpodidentity.k8s.io/reason"].startswith("PI501: ")
    assert "aadpodidentity.k8s.io/reason-time" in noted["bad"]
    assert "aadpodidentity.k8s.io/reason" not in noted["good-0"]
    assert tried <= (3 if how != "nobody is named" else 9)
    assert guarded.violations == []
    assert mic.process.returncode is None


class Pair:
    """Two MICs, of which one leads; whichever is killed is started anew."""

    def __init__(self, scene: Stage) -> None:
        self._scene = scene
        self._running: dict[str, Daemon] = {}
        self.ended: list[tuple[str, int | None]] = []

    async def start(self, name: str) -> None:
        flags = (SHORT_LEASE, f"--leader-election-instance={name}", "--update-user-msi-retry-interval=100ms")
        self._running[name] = await self._scene.mic(*flags)

    @property
    def leader(self) -> str:
        """Who holds the lease and runs; empty when nobody does."""
        held_by = [body["spec"].get("holderIdentity", "") for body in self._scene.sandbox.cluster.objects("leases")]
        return next((name for name in self._running for holder in held_by if holder.startswith(f"{name}_")), "")

    async def kill_leader(self) -> None:
        name = await until(lambda: self.leader, "a leader")
        killed = self._running.pop(name)
        self.ended.append((name, killed.process.returncode))
        await killed.end(signal.SIGKILL)
        await self.start(name + "i")

    def free_lease(self) -> None:
        """Let the lease of a MIC that was killed count as over, so that the test need not wait for that each time."""

        def free(body: dict[str, Any]) -> None:
            body["spec"]["holderIdentity"] = ""

        self._scene.sandbox.cluster.change("leases", "default", "aad-pod-identity-mic", free)

    def assert_nobody_ended(self) -> None:
        assert [code for _, code in self.ended if code is not None] == []
        assert all(running.process.returncode is None for running in self._running.values())
        assert all("Traceback" not in running.output for running in self._running.values())


async def churn(guarded: Guarded, chance: random.Random, labels: Sequence[str], changes: list[str]) -> None:
    """Let pods come and go, up to twelve of them, some under a name that was just used; note it in *changes*."""
    scene = guarded.stage
    while True:
        name = f"pod-{chance.randrange(12)}"
        if name in guarded.pods():
            scene.delete_pod(name)
        else:
            with suppress(StatusError):  # the last pod of that name is not quite gone
                await scene.pod(name, chance.choice(labels))
        changes.append(name)
        scene.forget_polls()
        await asyncio.sleep(chance.uniform(0.05, 0.3))


async def steps(scene: Stage, count: int) -> None:
    """Return when MIC has made so many more writes of assignments and requests to Azure; on any machine, four seconds
    are enough of it.
    """

    def made() -> int:
        seen = scene.sandbox.faults.seen
        return len(seen("arm")) + sum(
            len(seen("kube", verb, ASSIGNMENTS)) for verb in ("POST", "PATCH", "PUT", "DELETE")
        )

    before = made()
    with suppress(TimeoutError):
        async with asyncio.timeout(4.0):
            while made() < before + count:  # noqa: ASYNC110  # what a sandbox has seen sets no event
                await asyncio.sleep(0.002)


async def test_leaders_that_are_killed_at_any_instant_leave_nothing_undone(guarded: Guarded) -> None:
    """Six kills, or as many as a busy machine has time for; after one the lease has to run out.

    tests/cluster/test_mic_failures.py has fifty, with a real API server.
    """
    chance, scene = random.Random(20), guarded.stage  # noqa: S311  # the same in each run
    labels = [f"label-{number}" for number in range(6)]
    for label in labels:
        scene.identity(label)
    pair = Pair(scene)
    await pair.start("a")
    await pair.start("b")
    await until(lambda: pair.leader, "a leader")
    changes: list[str] = []
    coming_and_going = asyncio.create_task(churn(guarded, chance, labels, changes))

    end_s, kills = now_s() + 60.0, 0
    while kills < 6 and now_s() < end_s:
        await until(lambda: pair.leader, "a leader")
        await steps(scene, chance.randrange(25))
        await pair.kill_leader()
        if kills % 5:
            pair.free_lease()
        kills += 1
    coming_and_going.cancel()
    with suppress(asyncio.CancelledError):
        await coming_and_going

    left_s, during = now_s(), len(scene.patches())
    await guarded.settled()
    print(f"settled {now_s() - left_s:.1f} s after kill {kills}; {len(changes)} changes, {during} writes to the host")
    assert kills >= 3
    assert len(changes) >= kills
    assert during > 0  # else they were killed before they came to anything
    pair.assert_nobody_ended()
    for name in guarded.pods():
        scene.delete_pod(name)
    await guarded.settled()
    pair.assert_nobody_ended()

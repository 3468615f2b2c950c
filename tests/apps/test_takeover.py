"""A cluster of the original is taken over as it stands, at any moment of the original's work, and can be given back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import pytest_asyncio

from apps.sandbox.faults import Fault, Seen
from apps.sandbox.identity_rules import HostIdentity
from apps.sandbox.options import identity_id, scale_set_nodes
from apps.sandbox.serving import Scope, header
from tests.apps.daemons import Daemon, until
from tests.apps.original import FINALIZER, OURS, Body, OriginalMic
from tests.apps.stage import Stage, now_s, stage

SYNCED = "pod cache synchronized"
WORKS = "sync thread started."
SHORT_LEASE = "--leader-election-duration=2s"
LONG_DEAD_S = 7200.0


@pytest_asyncio.fixture
async def cluster() -> AsyncIterator[Stage]:
    """A cluster whose original has just been deleted: its lock and its mark are still there."""
    async with stage(nodes=scale_set_nodes(2)) as started:
        original = OriginalMic(started.sandbox)
        original.mark()
        original.renew("mic-5c8f7d", age_s=LONG_DEAD_S)
        yield started


@pytest.fixture
def original(cluster: Stage) -> OriginalMic:
    return OriginalMic(cluster.sandbox)


async def looked_at_everything(stage: Stage, mic: Daemon) -> None:
    """Return when MIC has done whatever it does at its start: a pod that comes after that has its identity."""
    await mic.line(SYNCED)
    stage.identity("marker")
    await stage.pod("marker")
    await until(lambda: stage.assignments.get("marker/marker") == "Assigned", "the assignment of the marker")


def kube_writes(stage: Stage, since: float = 0.0) -> list[str]:
    """Every write to the API server but for events and our own lease, as `VERB name`."""
    return [
        f"{seen.method} {seen.path.rpartition('/')[2]}"
        for seen in stage.sandbox.faults.seen("kube")
        if seen.method != "GET" and seen.at >= since and "/events" not in seen.path and "/leases" not in seen.path
    ]


def writes_of(stage: Stage, pod: str) -> list[str]:
    """The writes of the assignments of *pod*, without the names."""
    return [write.split()[0] for write in kube_writes(stage) if write.partition(" ")[2].startswith(f"{pod}-")]


def host_requests(stage: Stage, method: str) -> list[Seen]:
    return list(stage.sandbox.faults.seen("arm", method, "/virtualMachineScaleSets/"))


def assigned_on_host(stage: Stage) -> set[str]:
    """The names of the identities that the host has."""
    return {entry.rpartition("/")[2] for entry in stage.host.identity.assigned}


async def existing_pods(stage: Stage, *names: str, label: str = "") -> None:
    for name in names:
        await stage.pod(name, label)


async def test_a_cluster_at_rest_is_taken_over_without_a_write(cluster: Stage, original: OriginalMic) -> None:
    """The host is not even read, until a pod comes."""
    cluster.namespace("team")
    await existing_pods(cluster, "one", "two", "ancient")
    await cluster.pod("inside", "apart", namespace="team")
    for name in ("one", "two", "ancient"):
        original.identity(name)
        original.put_on(cluster.host.resource_id, name)
    original.identity("apart", namespace="team", namespaced=True)
    original.put_on(cluster.host.resource_id, "apart")
    original.assign("one", "one", node=node_of(cluster, "one"))
    original.assign("two", "two", node=node_of(cluster, "two"))
    original.assign("ancient", "ancient", "", node=node_of(cluster, "ancient"))
    original.assign("inside", "apart", namespace="team", node=node_of(cluster, "inside", "team"))
    before = cluster.sandbox.cluster.objects("azureassignedidentities")

    mic = await cluster.mic()
    await looked_at_everything(cluster, mic)

    assert kube_writes(cluster) == ["POST azureassignedidentities", "PATCH marker-default-marker"]
    assert len(host_requests(cluster, "PATCH")) == 1
    assert len(host_requests(cluster, "GET")) == 2  # for the marker: once to plan, once to write
    assert assigned_on_host(cluster) == {"one", "two", "ancient", "apart", "marker"}
    assert [body for body in cluster.sandbox.cluster.objects("azureassignedidentities") if body in before] == before


async def test_a_drift_check_of_such_a_cluster_reads_the_host_and_writes_nothing(
    cluster: Stage, original: OriginalMic
) -> None:
    await existing_pods(cluster, "one")
    original.identity("one")
    original.put_on(cluster.host.resource_id, "one")
    original.assign("one", "one", node=node_of(cluster, "one"))

    await cluster.mic("--identity-assignment-reconcile-interval=200ms")
    await until(lambda: len(host_requests(cluster, "GET")) >= 3, "three drift checks")

    assert kube_writes(cluster) == []
    assert host_requests(cluster, "PATCH") == []


def node_of(stage: Stage, pod: str, namespace: str = "default") -> str:
    pods = stage.sandbox.cluster.objects("pods", namespace)
    return str(next(body["spec"]["nodeName"] for body in pods if body["metadata"]["name"] == pod))


async def test_what_the_original_had_begun_is_carried_on_with_as_few_writes_as_that_needs(
    cluster: Stage, original: OriginalMic
) -> None:
    """The original stopped: before its PATCH, after it, and between the removal from the host and the deletion."""
    begun = {
        "before-patch": ("Created", False, ["PATCH"]),
        "after-patch": ("Created", True, ["PATCH"]),
        "back-again": ("Unassigned", True, ["PATCH"]),
        "back-off": ("Unassigned", False, ["PATCH"]),
        "no-state": ("", True, []),
        "no-status": (None, True, []),
        "settled": ("Assigned", True, []),
    }
    for name, (state, on_host, _) in begun.items():
        await existing_pods(cluster, name)
        original.identity(name)
        original.put_on(cluster.host.resource_id, *([name] if on_host else []))
        original.assign(name, name, state, node=node_of(cluster, name))

    mic = await cluster.mic()
    await looked_at_everything(cluster, mic)
    await until(lambda: "before-patch" in assigned_on_host(cluster))
    states = {name: f"{name}/{name}" for name in begun if begun[name][2]}
    await until(lambda: all(cluster.assignments.get(key) == "Assigned" for key in states.values()))

    assert {name: writes_of(cluster, name) for name in begun} == {
        name: writes for name, (_, _, writes) in begun.items()
    }
    assert assigned_on_host(cluster) == {*begun, "marker"}
    assert len(host_requests(cluster, "PATCH")) <= 2


async def test_pods_come_and_go_and_an_identity_leaves_with_its_last_pod_whoever_had_assigned_it(
    cluster: Stage, original: OriginalMic
) -> None:
    original.identity("shared")
    original.put_on(cluster.host.resource_id, "shared", "of-somebody-else")
    await existing_pods(cluster, "old-1", "old-2", label="shared")
    for name in ("old-1", "old-2"):
        original.assign(name, "shared", node=node_of(cluster, name))
    mic = await cluster.mic()
    await mic.line(SYNCED)

    await cluster.pod("new", "shared")
    await until(lambda: cluster.assignments.get("new/shared") == "Assigned")
    cluster.delete_pod("old-1")
    cluster.delete_pod("new")
    await until(lambda: set(cluster.assignments) == {"old-2/shared"}, "one assignment left")
    assert "shared" in assigned_on_host(cluster)
    cluster.delete_pod("old-2")
    await until(lambda: not cluster.assignments, "the end of all assignments")

    assert assigned_on_host(cluster) == {"of-somebody-else"}
    assert len(host_requests(cluster, "PATCH")) == 1


async def test_the_original_is_interrupted_amidst_its_deletions(cluster: Stage, original: OriginalMic) -> None:
    """Its DELETE was sent and its finalizer is still there, before or after its PATCH; or nothing was done at all."""
    for name in ("half-on", "half-off", "gone", "wanted", "node-gone", "gone-too"):
        original.identity(name)
    host = cluster.host.resource_id
    original.put_on(host, "half-on", "gone", "wanted", "node-gone", "gone-too")
    await existing_pods(cluster, "wanted")
    original.assign("half-on", "half-on", "Assigned")
    original.assign("half-off", "half-off", "Unassigned")
    original.assign("gone", "gone", "Assigned")
    original.assign("gone-too", "gone-too", "Created")
    original.assign("node-gone", "node-gone", node="aks-removed-vmss000007")
    kept = original.assign("wanted", "wanted", node=node_of(cluster, "wanted"))
    for name in ("half-on", "half-off", "wanted"):
        cluster.delete("azureassignedidentities", f"{name}-default-{name}")

    await cluster.mic()
    await until(lambda: cluster.assignments == {"wanted/wanted": "Assigned"}, "only the wanted assignment left")
    await until(lambda: "half-on" not in assigned_on_host(cluster))
    (anew,) = cluster.sandbox.cluster.objects("azureassignedidentities")

    assert anew["metadata"]["uid"] != kept["metadata"]["uid"]
    assert "deletionTimestamp" not in anew["metadata"]
    # Nobody knows which scale set a node was of that exists no more: there the original leaves the identity, too.
    assert assigned_on_host(cluster) == {"wanted", "node-gone"}
    assert all("wanted" in operation_ids(operation) for operation in cluster.patches())


def operation_ids(operation: Any) -> set[str]:
    return {entry.rpartition("/")[2] for entry in operation.identity.assigned}


@pytest.mark.parametrize("lost", ["content of the references", "all fields"])
async def test_an_assignment_in_a_spelling_of_before_1_6_is_written_anew_and_its_host_is_left_alone(
    cluster: Stage, original: OriginalMic, lost: str
) -> None:
    """The API server shows it without the fields that the schema does not know (spec of MIC, 1.5)."""
    original.identity("old")
    original.put_on(cluster.host.resource_id, "old")
    address = await cluster.pod("old")
    written = original.assign("old", "old", node=node_of(cluster, "old"))
    spec = written["spec"]
    old_spelling: Body = {"metadata": {}, "pod": "old", "nodename": spec["nodename"]}
    if lost == "content of the references":
        refs = {
            ref: {**spec[ref], "spec": in_capitals(spec[ref]["spec"])}
            for ref in ("azureIdentityRef", "azureBindingRef")
        }
        old_spelling |= {**refs, "podNamespace": "default"}
    else:
        old_spelling |= {"azureidentityref": spec["azureIdentityRef"], "podnamespace": "default"}

    def rewrite(body: Body) -> None:
        body["spec"] = old_spelling

    cluster.sandbox.cluster.change("azureassignedidentities", "default", "old-default-old", rewrite)
    mic = await cluster.mic()
    await mic.line(SYNCED)

    def is_whole() -> bool:
        found = cluster.sandbox.cluster.objects("azureassignedidentities")
        refs = [body["spec"].get("azureIdentityRef", {}).get("spec", {}).get("clientID") for body in found]
        return (
            refs == [cluster.identity_named("old").principal.client_id] and found[0]["status"]["status"] == "Assigned"
        )

    await until(is_whole, "a whole assignment")
    assert host_requests(cluster, "PATCH") == []
    assert assigned_on_host(cluster) == {"old"}
    await cluster.nmi("--node=" + node_of(cluster, "old"))
    assert (await cluster.token(address)).status == 200


def in_capitals(spec: Body) -> Body:
    return {name[:1].upper() + name[1:]: value for name, value in spec.items()}


@asynccontextmanager
async def leading(original: OriginalMic, holder: str) -> AsyncIterator[None]:
    """Let the original lead: it renews its lock four times a second."""

    async def renewing() -> None:
        while True:
            original.renew(holder)
            await asyncio.sleep(0.25)

    original.renew(holder)
    task = asyncio.create_task(renewing())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def four_looks_at_the_lock(stage: Stage) -> None:
    enough = len(stage.sandbox.faults.seen("kube", "GET", "/endpoints/")) + 4
    await until(
        lambda: len(stage.sandbox.faults.seen("kube", "GET", "/endpoints/")) >= enough, "four looks at the lock"
    )


async def test_while_the_original_leads_ours_does_nothing_and_steps_aside_when_it_comes_back(
    cluster: Stage, original: OriginalMic
) -> None:
    async with leading(original, "mic-original"):
        mic = await cluster.mic(SHORT_LEASE)
        await mic.line("waiting: mic-original of aad-pod-identity 1.8 leads")
        cluster.identity("first")
        await cluster.pod("first")
        await four_looks_at_the_lock(cluster)
        assert {seen.method for seen in cluster.sandbox.faults.seen("kube")} == {"GET"}
        assert cluster.sandbox.faults.seen("arm") == []

    ended_s = now_s()
    await mic.line(WORKS)
    took_s = now_s() - ended_s
    await until(lambda: cluster.assignments == {"first/first": "Assigned"})

    async with leading(original, "mic-original-2"):
        await mic.line("lost leader lease")
        stopped_s = now_s()
        assert "mic-original-2 of aad-pod-identity 1.8 leads now" in mic.output
        cluster.identity("second")
        await cluster.pod("second")
        cluster.delete_pod("first")
        await four_looks_at_the_lock(cluster)
        assert kube_writes(cluster, stopped_s) == []
        assert cluster.patches(stopped_s) == []
        lines = len(mic.lines)

    await mic.line(WORKS, after=lines)
    await until(lambda: cluster.assignments == {"second/second": "Assigned"})
    await until(lambda: assigned_on_host(cluster) == {"second"})
    print(f"ours led {took_s:.2f} s after the original's last renewal; its lease is 1 s, ours 2 s")
    assert took_s < 10
    assert mic.process.returncode is None


async def test_what_ours_leaves_behind_is_what_the_original_would_have_written(
    cluster: Stage, original: OriginalMic
) -> None:
    """Field by field, but for two further annotations and the managedFields of embedded objects."""
    cluster.namespace("team")
    original.identity("plain")
    original.identity("apart", namespace="team", namespaced=True)
    for kind, name in ((1, "secret"), (2, "certificate")):
        password = {"name": name, "namespace": "default"}
        cluster.azure_identity(name, type=kind, clientID=f"id-of-{name}", tenantID="t", clientPassword=password)
        cluster.binding(name)
    cluster.sandbox.cluster.change(
        "azureidentities", "default", "secret", lambda body: body["spec"].update(auxiliaryTenantIDs=["t-2"], replicas=3)
    )
    mic = await cluster.mic()
    await mic.line(SYNCED)
    await existing_pods(cluster, "plain", "secret", "certificate")
    await cluster.pod("other", "plain")
    await cluster.pod("inside", "apart", namespace="team")
    await until(lambda: list(cluster.assignments.values()) == ["Assigned"] * 5, "five assignments")
    assert await mic.end() == 0

    for ours in cluster.sandbox.cluster.objects("azureassignedidentities"):
        theirs = original.counterpart(ours)
        metadata = ours["metadata"]
        assert {name: metadata[name] for name in theirs["metadata"]} == theirs["metadata"]
        assert metadata["finalizers"] == [FINALIZER]
        assert metadata.get("annotations", {}).keys() <= OURS
        assert "ownerReferences" not in metadata
        assert without_managed_fields(ours["spec"]) == without_managed_fields(theirs["spec"])
        assert ours["status"] == theirs["status"]
        assert original.would_do(metadata["namespace"], metadata["name"]) == "nothing"


def without_managed_fields(spec: Body) -> Body:
    read: Body = json.loads(json.dumps(spec))
    for ref in ("azureIdentityRef", "azureBindingRef"):
        read[ref]["metadata"].pop("managedFields", None)
    return read


async def test_the_original_can_finish_what_ours_had_begun(cluster: Stage, original: OriginalMic) -> None:
    """Killed while Azure works: what is new is `Created`, as the original would have it, what goes is `Unassigned`."""
    mic = await cluster.mic()
    await mic.line(SYNCED)
    cluster.identity("goes")
    await cluster.pod("goes")
    await until(lambda: cluster.assignments == {"goes/goes": "Assigned"})
    cluster.sandbox.faults.add(
        Fault("arm", method="PATCH", match="/virtualMachineScaleSets/", action="hang", times=None)
    )
    cluster.identity("comes")
    cluster.delete_pod("goes")
    await cluster.pod("comes")
    await until(lambda: cluster.assignments == {"goes/goes": "Unassigned", "comes/comes": "Created"})
    mic.process.kill()
    await mic.exit_code()

    assert original.would_do("default", "comes-default-comes") == "assign"
    assert original.would_do("default", "goes-default-goes") == "delete"


@pytest.mark.parametrize("when", ["after ours came back", "before ours came back"])
async def test_an_identity_of_an_assignment_that_the_original_moved_leaves_its_new_scale_set(
    moved: tuple[Stage, str, str], when: str
) -> None:
    """The original keeps our note of the host when it updates an assignment. Here the pod ends, and when."""
    both, first, second = moved
    if when == "before ours came back":
        both.delete_pod("moved")
    mic = await both.mic()
    await looked_at_everything(both, mic)
    if when == "after ours came back":
        both.delete_pod("moved")
    await until(lambda: set(both.assignments) == {"marker/marker"}, "the end of the assignment")

    azure = both.sandbox.azure
    assert {host: azure.host(host).identity.folded & {identity_id("moved").lower()} for host in (first, second)} == {
        first: frozenset(),
        second: frozenset(),
    }


@pytest_asyncio.fixture
async def moved() -> AsyncIterator[tuple[Stage, str, str]]:
    """A pod that ours had assigned on one scale set, and the original on another; and both hosts."""
    nodes = (*scale_set_nodes(1), *scale_set_nodes(1, "aks-pool2-12345678-vmss"))
    async with stage(nodes=nodes) as both:
        original = OriginalMic(both.sandbox)
        original.identity("moved")
        mic = await both.mic()
        await both.pod("moved", node=nodes[0].name)
        await until(lambda: both.assignments == {"moved/moved": "Assigned"})
        await mic.end()
        both.delete_pod("moved")
        await both.pod("moved", node=nodes[1].name)
        original.move("moved-default-moved", nodes[1].name)
        both.host.identity, both.host.served = HostIdentity(), frozenset()
        original.put_on(nodes[1].host_id, "moved")
        yield both, nodes[0].host_id, nodes[1].host_id


async def test_our_nmi_serves_assignments_of_the_original_also_without_a_state(
    cluster: Stage, original: OriginalMic
) -> None:
    node = cluster.sandbox.options.nodes[0].name
    addresses = {}
    for name, state in {"assigned": "Assigned", "empty": "", "none": None}.items():
        original.identity(name)
        original.put_on(cluster.host.resource_id, name)
        addresses[name] = await cluster.pod(name, node=node)
        original.assign(name, name, state, node=node)

    await cluster.nmi()
    replies = await asyncio.gather(*(cluster.token(address) for address in addresses.values()))

    clients = [cluster.identity_named(name).principal.client_id for name in addresses]
    assert [reply.status for reply in replies] == [200, 200, 200]
    assert [json.loads(reply.body)["client_id"] for reply in replies] == clients


def agents(stage: Stage) -> Callable[[], list[tuple[str, str, str]]]:
    """From now on, note user agent, server and method of each write; returns what reads the notes."""
    notes: list[tuple[str, str, str]] = []
    record = stage.sandbox.faults._record

    def noting(server: str, scope: Scope, status: int) -> None:
        if server in ("kube", "arm") and scope["method"] != "GET":
            notes.append((header(scope, "user-agent"), server, scope["method"]))
        record(server, scope, status)

    stage.sandbox.faults._record = noting  # type: ignore[method-assign]
    return lambda: notes


async def test_a_dry_run_beside_a_working_mic_logs_the_plan_and_writes_nothing(
    cluster: Stage, original: OriginalMic
) -> None:
    writes = agents(cluster)
    original.identity("goes")
    original.put_on(cluster.host.resource_id, "goes")
    original.assign("goes", "goes")
    cluster.identity("comes")
    await cluster.pod("comes")

    dry = await cluster.mic("--dry-run", "--custom-user-agent=rehearsal")
    await dry.line("dry run: would create AzureAssignedIdentity default/comes-default-comes")
    await dry.line("dry run: would put", "comes", "on")
    await dry.line("dry run: would delete AzureAssignedIdentity default/goes-default-goes")
    assert writes() == []

    working = await cluster.mic("--custom-user-agent=performance")
    await working.line(SYNCED)
    await until(lambda: cluster.assignments == {"comes/comes": "Assigned"})
    cluster.identity("later")
    await cluster.pod("later")
    await until(lambda: cluster.assignments.get("later/later") == "Assigned")
    await dry.line("later")
    cluster.delete_pod("comes")
    await until(lambda: assigned_on_host(cluster) == {"later"})

    assert {agent.endswith("performance") for agent, _, _ in writes()} == {True}
    assert {server for _, server, _ in writes()} == {"kube", "arm"}
    assert dry.process.returncode is None
    assert "Traceback" not in dry.output

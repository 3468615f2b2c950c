"""The fakes and the real adapters keep the same contracts; the real ones over sockets, against the sandbox."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from apps.clock import SystemClock
from apps.sandbox.resources import Resource
from apps.sandbox.sandbox import Sandbox, SandboxOptions
from apps.sandbox.status import StatusError
from podidentity_core.model import BINDING_LABEL, Assignment, Binding, ExceptionRule, Identity, Key, Node, Pod, Thing
from podidentity_core.ports import AssignmentStore, ClusterReader, Event, EventSink, LeaderLock, Severity
from podidentity_core.testing.contracts import (
    AssignmentStoreContract,
    ClusterReaderContract,
    ClusterWorld,
    EventSinkContract,
    LeaderLockContract,
)
from podidentity_core.testing.fakes import FakeCluster, FakeEvents, FakeLeaderLock
from podidentity_k8s import bodies
from podidentity_k8s.api import Connection, KubeApi
from podidentity_k8s.assignments import KubeAssignments
from podidentity_k8s.cluster import KubeCluster
from podidentity_k8s.config import load_credentials
from podidentity_k8s.convert import KINDS, assignment_of
from podidentity_k8s.events import KubeEvents
from podidentity_k8s.lease import LeaseLock
from podidentity_k8s.resources import mic_resources, nmi_resources
from podidentity_k8s.wire import GROUP_VERSION, WireAssignment

CRDS = tuple(sorted((Path(__file__).parents[2] / "deploy/chart/crds").glob("*.yaml")))


class FakeWorld:
    """The world of a FakeCluster."""

    def __init__(self) -> None:
        self.cluster = FakeCluster()

    async def put(self, thing: Thing) -> None:
        self.cluster.put(thing)

    async def remove(self, thing: Thing) -> None:
        self.cluster.remove(thing)

    async def assignments(self) -> Mapping[Key, Assignment]:
        return self.cluster.assignments


class TestFakeClusterReads(ClusterReaderContract):
    @pytest.fixture
    def world(self) -> FakeWorld:
        return FakeWorld()

    @pytest.fixture
    def reader(self, world: FakeWorld) -> ClusterReader:
        return world.cluster


class TestFakeClusterStores(AssignmentStoreContract):
    @pytest.fixture
    def world(self) -> FakeWorld:
        return FakeWorld()

    @pytest.fixture
    def store(self, world: FakeWorld) -> AssignmentStore:
        return world.cluster


class TestFakeEvents(EventSinkContract):
    @pytest.fixture
    def sink(self) -> EventSink:
        return FakeEvents()

    @pytest.fixture
    def delivered(self, sink: FakeEvents) -> Callable[[], Awaitable[Mapping[Event, int]]]:
        async def delivered() -> Mapping[Event, int]:
            return Counter(sink.published)

        return delivered


class TestFakeLeaderLock(LeaderLockContract):
    @pytest.fixture
    def candidate(self) -> Callable[[str], LeaderLock]:
        seat = asyncio.Lock()
        return lambda identity: FakeLeaderLock(seat)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(SandboxOptions(nodes=(), crds=CRDS, run_pods=False)) as running:
        yield running


@pytest.fixture
async def api(sandbox: Sandbox) -> AsyncIterator[KubeApi]:
    async with Connection(await load_credentials(str(sandbox.kubeconfig)), user_agent="test") as connection:
        yield KubeApi(connection, clock=SystemClock(), random=random.random)


class SandboxWorld:
    """The world of a real adapter: writes straight into the sandbox's store."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._cluster = sandbox.cluster

    async def put(self, thing: Thing) -> None:
        body = body_of(thing)
        try:
            held = self._cluster.store.get(self._resource(thing), thing.key.namespace, thing.key.name)
        except StatusError:
            self._cluster.create(body)
        else:
            kept = {name: held.body["metadata"][name] for name in ("uid", "creationTimestamp", "resourceVersion")}
            self._cluster.replace({**body, "metadata": {**body["metadata"], **kept}})

    async def remove(self, thing: Thing) -> None:
        resource = self._resource(thing)
        kept = self._cluster.delete(resource, thing.key.namespace, thing.key.name, 0)
        if kept is not None:
            self._cluster.replace({**kept.body, "metadata": {**kept.body["metadata"], "finalizers": []}})

    async def assignments(self) -> Mapping[Key, Assignment]:
        found = {}
        for body in self._cluster.objects("azureassignedidentities"):
            assignment = assignment_of(WireAssignment.model_validate(body))
            assert isinstance(assignment, Assignment)
            found[assignment.key] = assignment
        return found

    def _resource(self, thing: Thing) -> Resource:
        return self._cluster.registry.of(body_of(thing))


def body_of(thing: Thing) -> dict[str, Any]:
    """The object as somebody would apply it."""
    api_version = "v1" if isinstance(thing, Pod | Node) else GROUP_VERSION
    place = {"name": thing.key.name, **({"namespace": thing.key.namespace} if thing.key.namespace else {})}
    head = {"apiVersion": api_version, "kind": KINDS[type(thing)], "metadata": place}
    match thing:
        case Pod():
            return pod_body(head, thing)
        case Node():
            assert thing.host is not None
            return {**head, "spec": {"providerID": f"azure://{thing.host.resource_id}/virtualMachines/0"}}
        case Identity():
            embedded = bodies.embedded_identity(thing)
            return {**head, "spec": embedded["spec"]}
        case Binding():
            embedded = bodies.embedded_binding(thing)
            return {**head, "spec": embedded["spec"]}
        case ExceptionRule():
            return {**head, "spec": {"podLabels": dict(thing.pod_labels)}}
        case Assignment():
            return bodies.new_assignment(thing)


def pod_body(head: Mapping[str, Any], pod: Pod) -> dict[str, Any]:
    labels = {**pod.labels, **({} if pod.label is None else {BINDING_LABEL: pod.label})}
    owners = [{"kind": "ReplicaSet", "name": pod.owner_replica_set}] if pod.owner_replica_set else []
    whose = {"serviceAccountName": pod.service_account, "hostNetwork": pod.host_network}
    addresses = {"podIP": pod.ips[0], "podIPs": [{"ip": ip} for ip in pod.ips]} if pod.ips else {}
    return {
        **head,
        "metadata": {**head["metadata"], "labels": labels, "ownerReferences": owners},
        "spec": {"nodeName": pod.node, "containers": [{"name": "main", "image": "main"}], **whose},
        "status": {"phase": pod.phase.value, **addresses},
    }


class TestKubeCluster(ClusterReaderContract):
    @pytest.fixture
    def world(self, sandbox: Sandbox) -> ClusterWorld:
        return SandboxWorld(sandbox)

    @pytest.fixture
    def reader(self, api: KubeApi) -> ClusterReader:
        rules = next(resource for resource in nmi_resources("any") if resource.kind is ExceptionRule)
        return KubeCluster(api, (*mic_resources(), rules), clock=SystemClock(), random=random.random)


class TestKubeAssignments(AssignmentStoreContract):
    @pytest.fixture
    def world(self, sandbox: Sandbox) -> ClusterWorld:
        return SandboxWorld(sandbox)

    @pytest.fixture
    def store(self, api: KubeApi) -> AssignmentStore:
        return KubeAssignments(api)


class TestKubeEvents(EventSinkContract):
    @pytest.fixture
    async def sink(self, api: KubeApi) -> AsyncIterator[EventSink]:
        async with KubeEvents(api, clock=SystemClock()) as events:
            yield events

    @pytest.fixture
    def delivered(self, sandbox: Sandbox, sink: KubeEvents) -> Callable[[], Awaitable[Mapping[Event, int]]]:
        async def delivered() -> Mapping[Event, int]:
            await sink.delivered()
            return {event_of(body): body["count"] for body in sandbox.cluster.objects("events")}

        return delivered


def event_of(body: Mapping[str, Any]) -> Event:
    about = body["involvedObject"]
    kind = next(kind for kind, name in KINDS.items() if name == about["kind"])
    key = Key(about["namespace"], about["name"])
    return Event(kind, key, about["uid"], Severity(body["type"]), body["reason"], body["message"])


class TestLeaseLock(LeaderLockContract):
    @pytest.fixture
    def candidate(self, api: KubeApi) -> Callable[[str], LeaderLock]:
        def candidate(identity: str) -> LeaderLock:
            return LeaseLock(
                api,
                namespace="default",
                name="mic",
                identity=identity,
                clock=SystemClock(),
                random=random.random,
                duration_s=3.0,
            )

        return candidate

"""The fake and the real reader of a node's pods keep the same contract; the real one over a socket."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from urllib.parse import parse_qs

import pytest

from apps.clock import SystemClock
from apps.sandbox.faults import Fault
from apps.sandbox.resources import PODS
from apps.sandbox.sandbox import Sandbox, SandboxOptions
from podidentity_core.errors import PermissionRefused, TransientError
from podidentity_core.model import Key, Pod, Unusable
from podidentity_core.reasons import Reason, because
from podidentity_core.testing import builders
from podidentity_core.testing.contracts import PodReaderContract
from podidentity_core.testing.contracts.pods import NODE
from podidentity_core.testing.fakes import FakeCluster
from podidentity_k8s.api import Connection, KubeApi
from podidentity_k8s.config import load_credentials
from podidentity_k8s.listing import KubePods
from tests.contracts.test_cluster_contracts import SandboxWorld


class FakePodWorld:
    def __init__(self) -> None:
        self.reader = FakeCluster()

    async def put(self, pod: Pod) -> None:
        self.reader.put(pod)

    async def put_unusable(self, key: Key) -> None:
        told = because(Reason.BAD_OBJECT, kind="Pod", name=str(key), problem="broken")
        self.reader.put(Unusable(Pod, key, told))

    async def remove(self, pod: Pod) -> None:
        self.reader.remove(pod)

    def forbid(self) -> None:
        self.reader.fail_next(PermissionRefused("forbidden"), operation="pods")

    def break_down(self) -> None:
        self.reader.fail_next(TransientError("broken"), operation="pods")


class TestFakeCluster(PodReaderContract):
    @pytest.fixture
    def world(self) -> FakePodWorld:
        return FakePodWorld()


class SandboxPodWorld(SandboxWorld):
    """Writes straight into the sandbox's store, reads through its API server."""

    def __init__(self, sandbox: Sandbox, api: KubeApi) -> None:
        super().__init__(sandbox)
        self.sandbox = sandbox
        self.reader = KubePods(api, NODE)
        sandbox.cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}})

    async def put_unusable(self, key: Key) -> None:
        place = {"namespace": key.namespace, "name": key.name}
        odd = {"metadata": place, "spec": {"nodeName": NODE}, "status": {"podIPs": "none"}}
        self.sandbox.cluster.create(odd, PODS)

    def forbid(self) -> None:
        self.sandbox.faults.add(Fault("kube", match="/pods", status=403))

    def break_down(self) -> None:
        self.sandbox.faults.add(Fault("kube", match="/pods", status=503, times=None))


class TestKubePods(PodReaderContract):
    @pytest.fixture
    async def world(self) -> AsyncIterator[SandboxPodWorld]:
        async with Sandbox(SandboxOptions(nodes=(), run_pods=False)) as sandbox:
            credentials = await load_credentials(str(sandbox.kubeconfig))
            async with Connection(credentials, user_agent="test") as connection:
                yield SandboxPodWorld(sandbox, KubeApi(connection, clock=SystemClock(), random=random.random))

    async def test_pods_of_other_nodes_are_not_even_sent(self, world: SandboxPodWorld) -> None:
        mine, other = builders.pod("mine", node=NODE), builders.pod("other", node="node-2")
        for pod in (mine, other, builders.pod("nowhere", node="")):
            await world.put(pod)

        assert [pod.key for pod in await world.reader.pods()] == [mine.key]
        (seen,) = world.sandbox.faults.seen("kube", "GET", "/pods")
        assert parse_qs(seen.query)["fieldSelector"] == [f"spec.nodeName={NODE}"]

    async def test_the_server_is_asked_for_what_it_has_stored_not_for_what_it_has_cached(
        self, world: SandboxPodWorld
    ) -> None:
        """A list without a version comes from etcd; one of version 0 may be as old as the watch that it is to check."""
        await world.reader.pods()

        (seen,) = world.sandbox.faults.seen("kube", "GET", "/pods")
        assert not {"resourceVersion", "resourceVersionMatch"} & set(parse_qs(seen.query))

    async def test_a_server_that_fails_once_is_asked_again(self, world: SandboxPodWorld) -> None:
        await world.put(builders.pod(node=NODE))
        world.sandbox.faults.add(Fault("kube", match="/pods", action="close"))

        assert len(await world.reader.pods()) == 1

    @pytest.mark.parametrize(
        "fault",
        [
            Fault("kube", match="/pods", status=200, body="<html>", headers={"content-type": "text/html"}, times=None),
            Fault("kube", match="/pods", status=200, body={"items": 5}, times=None),
            Fault("kube", match="continue=", status=410, times=None),
            Fault("kube", match="continue=", action="close", times=None),
        ],
        ids=["a proxy's page", "no list", "the rest has expired", "the rest is cut off"],
    )
    async def test_half_a_list_is_none(self, world: SandboxPodWorld, fault: Fault) -> None:
        """A pod that is missing from it would count as absent."""
        for number in range(501):
            await world.put(builders.pod(f"web-{number}", node=NODE))
        world.sandbox.faults.add(fault)

        with pytest.raises(TransientError):
            await world.reader.pods()

"""Azure's own SDKs in pods, unchanged and with their own settings, behind NMI's real interception.

`python -m tests.cluster.sdks.build` builds them; PODIDENTITY_SDKS narrows the choice (sdks/build.py).
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from apps.sandbox.options import SandboxOptions, scale_set_id
from apps.sandbox.sandbox import NodeSpec
from tests.cluster.azure import AzureSide
from tests.cluster.cluster import Cluster
from tests.cluster.control_plane import ControlPlane
from tests.cluster.errors import MachineLacks
from tests.cluster.isolation import in_namespace, run
from tests.cluster.kubelet import Kubelet, RunningPod
from tests.cluster.network import METADATA_ADDRESS, NODE_ADDRESS
from tests.cluster.processes import Process
from tests.cluster.programs import Programs, binding, identity, pod
from tests.cluster.sdks.arm import arm_for_pods
from tests.cluster.sdks.build import CHOICE, chosen, command
from tests.cluster.waiting import until

CLIENTS: Mapping[str, tuple[str, Sequence[str]]] = {
    "python": ("python", ()),
    "python-aio": ("python", ("--aio",)),
    "node": ("node", ()),
    "go": ("go", ()),
    "java": ("java", ()),
    "az": ("az", ()),
}
WITH_DEFAULT_CREDENTIAL = [name for name in CLIENTS if name != "az"]
ANSWER_S = 60
AWAY_S = 2
NO_WAIT = ("--retry-attempts-for-created=0", "--retry-attempts-for-assigned=0")


@dataclass(frozen=True, slots=True)
class Pods:
    """Starts the clients in pods, and knows what else they send."""

    programs: Programs
    environment: Mapping[str, str]

    def start(self, client: str, running: RunningPod, *arguments: str) -> Process:
        """Start *client* in a pod."""
        name, flags = CLIENTS[client]
        return self.programs.processes.start(
            f"{client}-{running.name}",
            [*command(name), *flags, *arguments],
            pod=running.network,
            environment=self.environment,
        )

    def ask(self, client: str, running: RunningPod, *arguments: str) -> dict[str, Any]:
        """Return what *client* prints, when it has ended."""
        return answer_of(self.start(client, running, *arguments))


def answer_of(process: Process) -> dict[str, Any]:
    """Return what a started client prints, when it has ended."""
    assert process.wait_for_exit(within_s=ANSWER_S) == 0, process.tail()
    return dict(json.loads(process.lines()[-1]))


def watch(running: RunningPod) -> None:
    """Count what the pod sends to others than NMI, and than the ARM that az needs."""
    for arguments in (
        f"-d {METADATA_ADDRESS} -p tcp --dport 80 -j ACCEPT",
        f"-d {NODE_ADDRESS} -p tcp -j ACCEPT",
        "-j DROP",
    ):
        run(*in_namespace(running.network.namespace, ["iptables", "--wait", "-A", "OUTPUT", *arguments.split()]))


def sent_elsewhere(running: RunningPod) -> int:
    """Return how many packets a watched pod has sent to others, name look-ups included."""
    return _counted(running)[-1]


def sent_to_nmi(running: RunningPod) -> int:
    """Return how many packets a watched pod has sent to the metadata address."""
    return _counted(running)[0]


def _counted(running: RunningPod) -> list[int]:
    listed = run(*in_namespace(running.network.namespace, ["iptables", "--wait", "-nvxL", "OUTPUT"]))
    return [int(line.split()[0]) for line in listed.splitlines()[2:]]


@contextmanager
def nobody_listening() -> Iterator[None]:
    """Refuse connections as a node does whose NMI restarts, for a time that does not depend on the machine's load."""
    rule = ["INPUT", "-p", "tcp", "--dport", "2579", "-j", "REJECT", "--reject-with", "tcp-reset"]
    run("iptables", "--wait", "-A", *rule)
    try:
        yield
    finally:
        run("iptables", "--wait", "-D", *rule)


@pytest.fixture
def sandbox_options() -> SandboxOptions:
    """Give an Azure that is quick to assign identities: how long it takes is no matter here."""
    nodes = (NodeSpec("node-0", scale_set_id("aks-pool1-12345678-vmss"), "0"),)
    return SandboxOptions(nodes=nodes, run_pods=False, operation_s=0.1)


@pytest.fixture
def pods(azure: AzureSide, programs: Programs, control_plane: ControlPlane, tmp_path: Path) -> Iterator[Pods]:
    """Give what runs clients in pods, with a home of their own and an ARM for az."""
    with arm_for_pods(azure, control_plane.certificates) as arm_url:
        authority = str(control_plane.certificates.authority)
        yield Pods(programs, {"HOME": str(tmp_path), "ARM_URL": arm_url, "REQUESTS_CA_BUNDLE": authority})


@pytest.fixture
def client(request: pytest.FixtureRequest) -> str:
    """Give the client's name, if it is chosen and built."""
    name: str = request.param
    problem = ""
    try:
        if CLIENTS[name][0] not in chosen():
            pytest.skip(f"{CHOICE} leaves out {name}")
        command(CLIENTS[name][0])
    except MachineLacks as error:
        problem = str(error)
    if problem:
        pytest.fail(problem, pytrace=False)
    return name


def bind(cluster: Cluster, azure: AzureSide, name: str, selector: str) -> tuple[str, str]:
    """Create an identity bound to pods with *selector*; return its resource ID and its client ID."""
    resource_id = azure.add_identity(name)
    client_id = azure.client_id(resource_id)
    cluster.apply(identity(name, resource_id, client_id), binding(name, name, selector=selector))
    return resource_id, client_id


def object_id(azure: AzureSide, resource_id: str) -> str:
    """Return the object ID of an identity."""
    return azure.sandbox.azure.identities[resource_id.lower()].principal.object_id


def assigned(cluster: Cluster, count: int) -> bool:
    """Tell whether *count* identities are assigned."""
    states = [held["status"]["status"] for held in cluster.list("AzureAssignedIdentity")]
    return states == ["Assigned"] * count


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
def test_a_client_gets_the_identity_that_it_names(
    client: str, azure: AzureSide, cluster: Cluster, kubelet: Kubelet, programs: Programs, pods: Pods
) -> None:
    programs.start_mic()
    programs.start_nmi().wait_for_line("in order")
    bind(cluster, azure, "first", selector="both")
    second, second_id = bind(cluster, azure, "second", selector="both")
    only, _ = bind(cluster, azure, "only", selector="one")
    one, both = (kubelet.run(pod(name, selector=name)) for name in ("one", "both"))
    for running in (one, both):
        watch(running)
    until(lambda: assigned(cluster, 3), "all identities are assigned", within_s=15)
    credentials = ("managed", "default") if client in WITH_DEFAULT_CREDENTIAL else ("managed",)

    got = {
        (credential, *selector): pods.ask(client, running, credential, *selector)
        for credential in credentials
        for running, selector in ((one, ()), (both, ("client-id", second_id)))
    }
    by_resource_id = pods.ask(client, both, "managed", "resource-id", second)

    for (_, *selector), answer in got.items():
        assert answer["claims"]["xms_mirid"] == (second if selector else only)
    assert by_resource_id["claims"]["xms_mirid"] == second
    assert sent_elsewhere(one) == sent_elsewhere(both) == 0


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
def test_a_client_without_its_identity_says_why(
    client: str, azure: AzureSide, cluster: Cluster, kubelet: Kubelet, programs: Programs, pods: Pods
) -> None:
    programs.start_mic()
    programs.start_nmi(*NO_WAIT).wait_for_line("in order")
    only, _ = bind(cluster, azure, "only", selector="one")
    stranger = azure.add_identity("stranger")
    one, none = kubelet.run(pod("one", selector="one")), kubelet.run(pod("none"))
    until(lambda: assigned(cluster, 1), "the identity is assigned", within_s=15)

    started = {
        "PI307": pods.start(client, none, "once"),
        "PI308 by client ID": pods.start(client, one, "once", "client-id", azure.client_id(stranger)),
        "PI308 by resource ID": pods.start(client, one, "once", "resource-id", stranger),
        "PI308 by object ID": pods.start(client, one, "once", "object-id", object_id(azure, only)),
    }

    for expected, process in started.items():
        answer = answer_of(process)
        code, _, _ = expected.partition(" ")
        assert f"({code}: " in answer["error"], expected


@pytest.mark.parametrize("client", ["python", "go"], indirect=True)
def test_a_client_outlasts_two_seconds_in_which_nobody_listens(
    client: str, azure: AzureSide, cluster: Cluster, kubelet: Kubelet, programs: Programs, pods: Pods
) -> None:
    programs.start_mic()
    programs.start_nmi().wait_for_line("in order")
    only, _ = bind(cluster, azure, "only", selector="one")
    one = kubelet.run(pod("one", selector="one"))
    watch(one)
    until(lambda: assigned(cluster, 1), "the identity is assigned", within_s=15)

    with nobody_listening():
        process = pods.start(client, one, "managed")
        until(lambda: sent_to_nmi(one), "the client is refused", within_s=15)
        time.sleep(AWAY_S)

    answer = answer_of(process)
    assert "claims" in answer, answer
    assert answer["claims"]["xms_mirid"] == only
    assert answer["seconds"] > AWAY_S

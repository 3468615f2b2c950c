"""A new NMI takes the place of the old one, as in a rolling update, while twenty pods go on asking for tokens."""

import json
import sys
import time
from collections import Counter
from dataclasses import dataclass

import httpx
import pytest

from tests.cluster.azure import AzureSide
from tests.cluster.cluster import Cluster
from tests.cluster.kubelet import Kubelet, RunningPod
from tests.cluster.processes import Process
from tests.cluster.programs import Programs, binding, identity, pod
from tests.cluster.waiting import until

PODS = 20
READY_URL = "http://127.0.0.1:8085/readyz"  # the port is the manifest's
AFTERWARDS_S = 2
LONGEST_GAP_S = 10

# What a pod may meet while one NMI ends and the next one starts: an end that says "ask again", nobody, a cut line.
IN_BETWEEN = {200, 503, "refused", "closed"}


@dataclass(frozen=True, slots=True)
class Asked:
    """When a pod's request began, and what became of it."""

    began_s: float
    outcome: int | str


def is_ready() -> bool:
    """Tell whether NMI says that it is ready."""
    try:
        return httpx.get(READY_URL, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def are_assigned(cluster: Cluster) -> bool:
    """Tell whether each pod has its identity."""
    states = [held["status"]["status"] for held in cluster.list("AzureAssignedIdentity")]
    return states == ["Assigned"] * PODS


def start_asking(programs: Programs, running: RunningPod, *, keep_alive: bool) -> Process:
    """Start a client that asks for tokens again and again."""
    flags = ["--keep-alive"] if keep_alive else []
    command = [sys.executable, "-m", "tests.cluster.steady_client", running.name, *flags]
    return programs.processes.start(f"client-{running.name}", command, pod=running.network)


def requests_of(client: Process) -> list[Asked]:
    """End a client and return what became of its requests."""
    assert client.stop() == 0, client.tail()
    return [Asked(began_s, outcome) for began_s, outcome in json.loads(client.lines()[-1])]


def test_between_two_nmis_pods_are_refused_for_a_moment_and_never_answered_by_the_real_service(
    azure: AzureSide, cluster: Cluster, kubelet: Kubelet, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    programs.start_mic()
    old = programs.start_nmi()
    until(is_ready, "NMI is ready", within_s=10)
    demo = azure.add_identity("demo")
    cluster.apply(identity("demo", demo, azure.client_id(demo)), binding("demo", "demo", selector="demo"))
    pods = [kubelet.run(pod(f"pod-{number}", selector="demo")) for number in range(PODS)]
    until(lambda: are_assigned(cluster), "all pods have the identity", within_s=20)
    clients = [start_asking(programs, running, keep_alive=index % 2 == 0) for index, running in enumerate(pods)]
    for client in clients:
        client.wait_for_line("served", within_s=30)

    assert old.stop() == 0
    programs.start_nmi()
    until(is_ready, "the next NMI is ready", within_s=LONGEST_GAP_S)
    ready_s = time.monotonic()
    time.sleep(AFTERWARDS_S)

    asked = [request for client in clients for request in requests_of(client)]
    late = [request for request in asked if request.began_s > ready_s]
    assert len(late) > PODS
    assert {request.outcome for request in late} == {200}
    assert {request.outcome for request in asked} <= IN_BETWEEN
    assert not [seen for seen in azure.sandbox.faults.seen("imds") if "asker=" in seen.query]
    refused_s = [request.began_s for request in asked if request.outcome == "refused"]
    gap_s = max(refused_s) - min(refused_s)
    with capsys.disabled():
        outcomes = dict(Counter(request.outcome for request in asked).most_common())
        print(f"\nbetween two NMIs pods were refused for {gap_s:.2f} s; requests by outcome: {outcomes}")

"""The rules over NMI's life: real daemon, real pods' networks, and pods that never stop asking.

They ask without the header `Metadata: true`. NMI refuses that by itself, so whatever the metadata service sees has
passed NMI by.
"""

import sys

from tests.cluster.azure import AzureSide
from tests.cluster.isolation import run
from tests.cluster.kubelet import Kubelet
from tests.cluster.network import METADATA_ADDRESS, METADATA_ADDRESS_6, NODE_ADDRESS_6, PodNetwork, connect_ipv6
from tests.cluster.processes import Process
from tests.cluster.programs import Programs, pod
from tests.cluster.waiting import until

NEW_RULES = "flushing iptables"
IN_ORDER = "interception is in order"

# Prints the status of each answer, or the error; with "keep" over one connection as long as that lasts.
ASKING = """
import http.client, sys, time
address, keep = sys.argv[1], sys.argv[2:] == ["keep"]
connection = None
while True:
    try:
        connection = connection or http.client.HTTPConnection(address, 80, timeout=5)
        connection.request("GET", "/metadata/identity/oauth2/token")
        answer = connection.getresponse()
        answer.read()
        print(answer.status, flush=True)
    except (OSError, http.client.HTTPException) as error:
        print(type(error).__name__, flush=True)
        keep = False
    if not keep:
        connection.close()
        connection = None
    time.sleep(0.01)
"""


def start_asking(programs: Programs, network: PodNetwork, address: str, *mode: str) -> Process:
    """Start a pod's program that asks over and over again, over new connections unless *mode* is `keep`."""
    return programs.processes.start("asker", [sys.executable, "-c", ASKING, address, *mode], pod=network)


def asked_again(asker: Process) -> list[str]:
    """Return the answers up to now, once there are three more."""
    before = len(asker.lines())
    until(lambda: len(asker.lines()) >= before + 3, "three more answers", within_s=20)
    return asker.lines()


def rules() -> str:
    """Return all rules of table nat."""
    return run("iptables", "--wait", "-t", "nat", "-S")


def test_rules_stay_when_nmi_ends_and_pods_are_refused_until_the_next_one_listens(
    azure: AzureSide, kubelet: Kubelet, programs: Programs
) -> None:
    first = programs.start_nmi()
    first.wait_for_line(IN_ORDER)
    asker = start_asking(programs, kubelet.run(pod("demo")).network, METADATA_ADDRESS)
    asked_again(asker)
    while_it_runs = rules()

    assert first.stop() == 0

    assert rules() == while_it_runs
    assert "aad-metadata" in while_it_runs
    assert asked_again(asker)[-1] == "ConnectionRefusedError"
    for _ in range(2):
        following = programs.start_nmi()
        following.wait_for_line(IN_ORDER)
        assert asked_again(asker)[-1] == "400"
        assert not [line for line in following.lines() if NEW_RULES in line]
        assert following.stop() == 0
    assert not azure.sandbox.faults.seen("imds")


def test_rules_go_with_nmi_if_that_is_asked_for(azure: AzureSide, kubelet: Kubelet, programs: Programs) -> None:
    before = rules()
    nmi = programs.start_nmi("--remove-rules-on-exit")
    nmi.wait_for_line(IN_ORDER)
    asker = start_asking(programs, kubelet.run(pod("demo")).network, METADATA_ADDRESS)
    asked_again(asker)
    assert not azure.sandbox.faults.seen("imds")

    assert nmi.stop() == 0

    assert rules() == before
    until(lambda: azure.sandbox.faults.seen("imds"), "the pod reaches the metadata service", within_s=10)


def test_connections_that_are_older_than_nmi_end(azure: AzureSide, kubelet: Kubelet, programs: Programs) -> None:
    asker = start_asking(programs, kubelet.run(pod("demo")).network, METADATA_ADDRESS, "keep")
    assert set(asked_again(asker)) == {"400"}
    nmi = programs.start_nmi("--ipt-update-interval-sec=1")
    nmi.wait_for_line(IN_ORDER)
    until(lambda: {*asker.lines()} - {"400"}, "the pod's connection ends", within_s=20)

    seen = len(azure.sandbox.faults.seen("imds"))
    asked_again(asker)

    assert seen > 0
    assert len(azure.sandbox.faults.seen("imds")) == seen


def test_a_metadata_address_of_ipv6_is_intercepted(kubelet: Kubelet, programs: Programs) -> None:
    network = kubelet.run(pod("demo")).network
    connect_ipv6(network)
    nmi = programs.start_nmi(f"--metadata-ip={METADATA_ADDRESS_6}", f"--nmi-listen-address={NODE_ADDRESS_6}")
    nmi.wait_for_line(rf"{IN_ORDER}: \[{METADATA_ADDRESS_6}\]:80 goes to \[{NODE_ADDRESS_6}\]:")
    asker = start_asking(programs, network, METADATA_ADDRESS_6)

    assert asked_again(asker)[-1] == "400"
    assert nmi.stop() == 0
    assert asked_again(asker)[-1] == "ConnectionRefusedError"

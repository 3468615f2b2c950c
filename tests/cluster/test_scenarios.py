"""MIC and NMI as real processes against a real API server, asked by the Azure SDK from pods' own networks."""

import signal
import time

from tests.cluster.azure import AzureSide
from tests.cluster.cluster import Cluster, Object
from tests.cluster.kubelet import Kubelet
from tests.cluster.programs import Programs, answer_of, binding, identity, pod
from tests.cluster.waiting import until

AFTER_OPERATION_S = 0.5


def bind(cluster: Cluster, azure: AzureSide, name: str) -> str:
    """Create an identity in Azure and bind it to pods with the selector *name*; return its resource ID."""
    resource_id = azure.add_identity(name)
    cluster.apply(
        identity(name, resource_id, azure.client_id(resource_id)), binding(f"{name}-binding", name, selector=name)
    )
    return resource_id


def assignments(cluster: Cluster) -> dict[str, str]:
    """Return the state of each AzureAssignedIdentity, by pod."""
    return {held["spec"]["pod"]: held["status"]["status"] for held in cluster.list("AzureAssignedIdentity")}


def binding_events(cluster: Cluster, name: str) -> list[Object]:
    """Return the events `binding applied` of a binding."""
    events = cluster.list("Event", "default")
    return [e for e in events if e["reason"] == "binding applied" and e["involvedObject"]["name"] == name]


def test_the_tutorial(azure: AzureSide, cluster: Cluster, kubelet: Kubelet, programs: Programs) -> None:
    programs.start_mic()
    nmi = programs.start_nmi()
    nmi.wait_for_line("interception is in order")
    demo = bind(cluster, azure, "demo")
    running = kubelet.run(pod("demo", selector="demo"))

    answer = programs.ask_token(running)

    assert answer["claims"]["xms_mirid"] == demo
    (operation,) = azure.sandbox.azure.operations
    assert operation.reported_at is not None
    assert answer["answered_at_s"] - operation.reported_at < AFTER_OPERATION_S
    nmi.wait_for_line(r"status \(200\) took \d+ ns .* req\.remote=" + running.address)
    assert assignments(cluster) == {"demo": "Assigned"}
    until(lambda: binding_events(cluster, "demo-binding"), "the event `binding applied`", within_s=5)


def test_pods_get_their_own_identity_or_none(
    azure: AzureSide, cluster: Cluster, kubelet: Kubelet, programs: Programs
) -> None:
    programs.start_mic()
    nmi = programs.start_nmi("--retry-attempts-for-created=1", "--retry-attempts-for-assigned=0")
    nmi.wait_for_line("in order")
    expected = {name: bind(cluster, azure, name) for name in ("one", "two")}
    pods = {name: kubelet.run(pod(name, selector=name)) for name in ("one", "two", "none")}

    asked = {name: programs.ask_token(running) for name, running in pods.items() if name in expected}
    stranger = programs.ask_token(pods["none"], "--retries=0", "--client-id", azure.client_id(expected["one"]))

    assert {name: answer["claims"]["xms_mirid"] for name, answer in asked.items()} == expected
    assert "error" in stranger
    nmi.wait_for_line(r"status \(40[34]\) .* req\.remote=" + pods["none"].address)
    assert sorted(assignments(cluster)) == ["one", "two"]


def test_the_identity_of_a_deleted_pod_leaves_the_host(
    azure: AzureSide, cluster: Cluster, kubelet: Kubelet, programs: Programs
) -> None:
    programs.start_mic("--identity-grace-period=3s")
    programs.start_nmi().wait_for_line("in order")
    demo = bind(cluster, azure, "demo")
    running = kubelet.run(pod("demo", selector="demo"))
    assert "claims" in programs.ask_token(running)

    kubelet.delete(running)

    until(lambda: set(assignments(cluster).values()) == {"Unassigned"}, "nobody is served by it any more", within_s=10)
    assert azure.identities_on_host()
    until(lambda: not azure.identities_on_host(), f"{demo} leaves the host", within_s=30)
    until(lambda: not assignments(cluster), "the assignment is deleted", within_s=10)


def test_another_mic_takes_over_from_a_killed_leader(
    azure: AzureSide, cluster: Cluster, kubelet: Kubelet, programs: Programs
) -> None:
    lease = "--leader-election-duration=3s"
    first = programs.start_mic(lease)
    first.wait_for_line("mic-0 became leader")
    second = programs.start_mic(lease, instance=1)
    programs.start_nmi().wait_for_line("in order")
    demo = bind(cluster, azure, "demo")
    client = programs.start_client(kubelet.run(pod("demo", selector="demo")))
    until(lambda: azure.identities_on_host(), "the first PATCH is under way", within_s=10)

    first.kill()
    killed_at_s = time.monotonic()

    second.wait_for_line("mic-1 became leader", within_s=10)
    assert time.monotonic() - killed_at_s > 1  # not while the lease of the dead one might be renewed
    assert answer_of(client)["claims"]["xms_mirid"] == demo
    assert assignments(cluster) == {"demo": "Assigned"}


def test_a_killed_nmi_keeps_pods_from_the_nodes_own_metadata(
    azure: AzureSide, kubelet: Kubelet, programs: Programs
) -> None:
    nmi = programs.start_nmi()
    nmi.wait_for_line("in order")
    demo = azure.add_identity("demo")
    azure.do(lambda sandbox: sandbox.azure.attach(azure.node.host_id, [demo]))
    running = kubelet.run(pod("demo"))

    assert nmi.kill() == -signal.SIGKILL

    assert "error" in programs.ask_token(running, "--retries=0", "--client-id", azure.client_id(demo))
    assert not azure.sandbox.faults.seen("imds")

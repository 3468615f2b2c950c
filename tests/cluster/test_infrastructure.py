"""What the scenarios stand on: the API server, the ServiceAccounts' rights, pod networks, redirection, processes."""

import json
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.cluster.azure import AzureSide
from tests.cluster.cluster import ApiRefused, Cluster, documents_of
from tests.cluster.conftest import DEPLOY
from tests.cluster.errors import NotInTime
from tests.cluster.isolation import run
from tests.cluster.kubelet import Kubelet, RunningPod, pod_of_template
from tests.cluster.network import METADATA_ADDRESS
from tests.cluster.processes import Processes
from tests.cluster.programs import MIC_ACCOUNT, NMI_ACCOUNT, Programs, pod
from tests.cluster.waiting import until

IDENTITIES = "/apis/aadpodidentity.k8s.io/v1"

GET_METADATA = [
    "-c",
    f"import urllib.request as u; print(u.urlopen('http://{METADATA_ADDRESS}/', timeout=5).read().decode())",
]

StartServer = Callable[[str, int, str], None]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Give a function that starts a server which answers with its own name and the peer's address."""
    started: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(address: str, port: int, name: str) -> None:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = f"{name} saw {self.client_address[0]}".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args: object) -> None:
                """Keep quiet."""

        server = ThreadingHTTPServer((address, port), Answer)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        started.append((server, thread))

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()


def metadata_seen_from(processes: Processes, pod: RunningPod | None) -> str:
    """Return what a program in *pod*, or on the node, gets from the metadata address."""
    client = processes.start("client", [sys.executable, *GET_METADATA], pod=pod.network if pod else None)
    assert client.wait_for_exit() == 0, client.tail()
    return client.lines()[-1]


class TestApiServer:
    def test_serves_the_four_kinds(self, admin: Cluster) -> None:
        served = admin.request("GET", IDENTITIES)["resources"]

        assert {resource["kind"] for resource in served} >= {
            "AzureIdentity",
            "AzureIdentityBinding",
            "AzureAssignedIdentity",
            "AzurePodIdentityException",
        }

    def test_keeps_the_demo_manifests_as_they_are_written(self, cluster: Cluster) -> None:
        written = [document for document in documents_of(DEPLOY / "demo") if "aadpod" in document["apiVersion"]]

        cluster.apply(*written)

        assert written
        for document in written:
            assert cluster.get(document["kind"], document["metadata"]["name"])["spec"] == document["spec"]

    def test_enforces_the_schema(self, cluster: Cluster) -> None:
        metadata = {"name": "bad"}
        identity = {"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity", "metadata": metadata}

        with pytest.raises(ApiRefused, match="must be of type integer"):
            cluster.create({**identity, "spec": {"type": "user-assigned"}})

    def test_is_empty_at_the_start_of_a_test(self, cluster: Cluster) -> None:
        assert {kind: cluster.list(kind) for kind in ("Node", "Pod", "AzureIdentity")} == {
            "Node": [],
            "Pod": [],
            "AzureIdentity": [],
        }


class TestServiceAccounts:
    @pytest.mark.parametrize(
        ("account", "method", "path", "status"),
        [
            (MIC_ACCOUNT, "GET", "/api/v1/pods", 200),
            (MIC_ACCOUNT, "GET", "/api/v1/nodes", 200),
            (MIC_ACCOUNT, "GET", "/api/v1/secrets", 403),
            (MIC_ACCOUNT, "DELETE", "/api/v1/namespaces/default/pods/any", 403),
            (MIC_ACCOUNT, "DELETE", f"{IDENTITIES}/namespaces/default/azureidentities/any", 403),
            (MIC_ACCOUNT, "DELETE", f"{IDENTITIES}/namespaces/default/azureassignedidentities/any", 404),
            (NMI_ACCOUNT, "GET", f"{IDENTITIES}/azureassignedidentities", 200),
            (NMI_ACCOUNT, "GET", "/api/v1/nodes", 403),
            (NMI_ACCOUNT, "DELETE", f"{IDENTITIES}/namespaces/default/azureassignedidentities/any", 403),
        ],
    )
    def test_have_the_rights_of_the_manifest_and_no_more(
        self, admin: Cluster, account: str, method: str, path: str, status: int
    ) -> None:
        config = json.loads(admin.kubeconfig_of(account).read_text())
        token = config["users"][0]["user"]["token"]

        with admin.control_plane.anonymous_client() as client:
            answer = client.request(method, path, headers={"Authorization": f"Bearer {token}"})

        assert answer.status_code == status, answer.text

    def test_a_token_names_its_account(self, admin: Cluster) -> None:
        config = json.loads(admin.kubeconfig_of(MIC_ACCOUNT).read_text())
        token = config["users"][0]["user"]["token"]
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}

        with admin.control_plane.anonymous_client() as client:
            answer = client.post(
                "/apis/authentication.k8s.io/v1/selfsubjectreviews",
                json=review,
                headers={"Authorization": f"Bearer {token}"},
            )

        assert answer.json()["status"]["userInfo"]["username"] == f"system:serviceaccount:default:{MIC_ACCOUNT}"

    def test_nobody_has_rights_without_a_token(self, admin: Cluster) -> None:
        with admin.control_plane.anonymous_client() as client:
            assert client.get("/api/v1/pods").status_code == httpx.codes.FORBIDDEN


class TestPods:
    def test_a_pod_runs_for_the_api_server_too(self, cluster: Cluster, kubelet: Kubelet) -> None:
        running = kubelet.run(pod("web"))

        seen = cluster.get("Pod", "web")
        assert (seen["spec"]["nodeName"], seen["status"]["phase"]) == ("node-0", "Running")
        assert seen["status"]["podIP"] == running.address

    def test_the_demo_deployment_gives_a_pod(self, cluster: Cluster, kubelet: Kubelet) -> None:
        deployments = [d for d in documents_of(DEPLOY / "infra" / "deployment-rbac.yaml") if d["kind"] == "Deployment"]

        kubelet.run(pod_of_template(deployments[0], "mic-0"))

        assert cluster.get("Pod", "mic-0")["metadata"]["labels"]["component"] == "mic"

    def test_an_address_is_used_again_after_the_pod(self, cluster: Cluster, kubelet: Kubelet) -> None:
        first = kubelet.run(pod("first"))

        kubelet.delete(first)

        assert kubelet.run(pod("second")).address == first.address
        assert [seen["metadata"]["name"] for seen in cluster.list("Pod")] == ["second"]


class TestInterception:
    def test_the_metadata_address_sees_the_pods_own_address(
        self, kubelet: Kubelet, processes: Processes, start_server: StartServer
    ) -> None:
        start_server(METADATA_ADDRESS, 80, "IMDS")
        first, second = kubelet.run(pod("first")), kubelet.run(pod("second"))

        assert metadata_seen_from(processes, first) == f"IMDS saw {first.address}"
        assert metadata_seen_from(processes, second) == f"IMDS saw {second.address}"

    def test_a_rule_redirects_pods_to_loopback_and_leaves_the_node_alone(
        self, kubelet: Kubelet, processes: Processes, start_server: StartServer
    ) -> None:
        start_server(METADATA_ADDRESS, 80, "IMDS")
        start_server("127.0.0.1", 2579, "NMI")
        running = kubelet.run(pod("web"))

        match = ("--destination", METADATA_ADDRESS, "--protocol", "tcp", "--dport", "80")
        target = ("--jump", "DNAT", "--to-destination", "127.0.0.1:2579")
        run("iptables", "--wait", "--table", "nat", "--append", "PREROUTING", *match, *target)

        assert metadata_seen_from(processes, running) == f"NMI saw {running.address}"
        assert metadata_seen_from(processes, None) == f"IMDS saw {METADATA_ADDRESS}"

    def test_no_rule_is_left_by_the_test_before(self, kubelet: Kubelet) -> None:
        assert "DNAT" not in run("iptables", "--wait", "--table", "nat", "--list-rules")


class TestAzure:
    def test_a_pod_gets_a_token_once_its_identity_is_on_the_host(
        self, azure: AzureSide, kubelet: Kubelet, programs: Programs
    ) -> None:
        demo = azure.add_identity("demo")
        running = kubelet.run(pod("web"))
        ask = ("--client-id", azure.client_id(demo))

        before = programs.ask_token(running, *ask)
        azure.do(lambda sandbox: sandbox.azure.attach(azure.node.host_id, [demo]))
        after = programs.ask_token(running, *ask)

        assert "Identity not found" in before["error"]
        assert after["claims"]["xms_mirid"] == demo

    def test_the_node_is_the_one_that_arm_knows(self, azure: AzureSide, cluster: Cluster, kubelet: Kubelet) -> None:
        provider_id = cluster.get("Node", azure.node.name)["spec"]["providerID"]

        assert provider_id.lower().startswith(f"azure://{azure.node.host_id}".lower())
        assert azure.identities_on_host() == frozenset()


class TestProcesses:
    def test_one_that_ignores_sigterm_is_killed(self, processes: Processes) -> None:
        stubborn = (
            "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
        )
        process = processes.start("stubborn", [sys.executable, "-c", stubborn])
        process.wait_for_line("^up$")

        assert process.stop(within_s=0.2) == -signal.SIGKILL

    def test_waiting_for_one_that_has_ended_shows_what_it_said(self, processes: Processes) -> None:
        process = processes.start("broken", [sys.executable, "-c", "raise SystemExit('no such flag')"])

        with pytest.raises(NotInTime, match="no such flag"):
            process.wait_for_line("listening", within_s=30)

    def test_a_pods_programs_are_stopped_like_the_nodes(self, kubelet: Kubelet, processes: Processes) -> None:
        running = kubelet.run(pod("web"))
        process = processes.start("sleep", ["sleep", "600"], pod=running.network)

        assert process.stop() == -signal.SIGTERM


class TestIsolation:
    def test_the_node_has_no_link_to_the_machine(self, control_plane: object) -> None:
        links = json.loads(run("ip", "-json", "link"))

        assert {link["ifname"] for link in links} == {"lo", "cni0"}

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_nothing_outlives_a_run(self, processes: Processes, number: signal.Signals) -> None:
        within = """
            import signal, subprocess
            from tests.cluster.isolation import enter, run
            enter()
            run("ip", "netns", "add", "left-over")
            subprocess.Popen(["sleep", "86399"], start_new_session=True)
            print("started", flush=True)
            signal.pause()
        """
        nested = processes.start("nested", [sys.executable, "-c", textwrap.dedent(within)])
        nested.wait_for_line("^started$")
        assert commands_running("sleep 86399")

        nested.send(number)
        nested.wait_for_exit()

        until(lambda: not commands_running("sleep 86399"), "the nested run's process is gone", within_s=5)
        assert "left-over" not in run("ip", "netns", "list")


def commands_running(command: str) -> list[Path]:
    """Return the processes, in this and in nested namespaces, whose command line is *command*."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            argv = (process / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        if argv.replace(b"\0", b" ").decode(errors="replace").strip() == command:
            found.append(process)
    return found

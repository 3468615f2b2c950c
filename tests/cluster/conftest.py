"""Fixtures of the tier with a real API server and real interception: `make test-cluster`, as root.

The order of things: this file's hook checks the machine, builds what is missing and moves the run into
namespaces of its own (isolation.py); session fixtures start the network and the control plane there; each
test gets an empty cluster, and its programs are stopped after it.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from apps.sandbox.options import scale_set_id
from apps.sandbox.sandbox import NodeSpec, SandboxOptions
from tests.cluster.azure import AzureSide, running_azure
from tests.cluster.build import find_helm, find_servers
from tests.cluster.cluster import Cluster
from tests.cluster.control_plane import ControlPlane, start_control_plane
from tests.cluster.errors import MachineLacks
from tests.cluster.isolation import RUN, enter, is_inside, require_machine
from tests.cluster.kubelet import Kubelet
from tests.cluster.network import create_node_network, reset_redirections
from tests.cluster.processes import Processes
from tests.cluster.programs import Programs, identity

DEPLOY = Path(__file__).parents[2] / "deploy"

# Pods first: what they cause must not come back while the rest goes.
WIPED = (
    "Pod",
    "AzureIdentityBinding",
    "AzureIdentity",
    "AzurePodIdentityException",
    "AzureAssignedIdentity",
    "Node",
    "Lease",
    "Event",
    "Secret",
)

RUNNING = pytest.StashKey[Processes]()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Move the run into its own namespaces before anything starts; one line if the machine cannot."""
    if config.option.collectonly:
        return
    try:
        require_machine()
        find_servers()  # may need the network, which is left behind now
        find_helm()
        enter()
    except MachineLacks as error:
        raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the test's programs printed to the report of a failure."""
    report = yield
    if report.failed and (processes := item.stash.get(RUNNING, None)):
        report.sections.append(("programs", processes.report()))
    return report


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Give the node's network, and a real API server on it; their logs are kept in pytest's folder."""
    if not is_inside():
        pytest.fail("name this folder on pytest's command line, or run `make test-cluster`", pytrace=False)
    create_node_network()
    processes = Processes(tmp_path_factory.mktemp("control-plane"))
    try:
        yield start_control_plane(find_servers(), processes, RUN)
    finally:
        processes.stop_all()


@pytest.fixture(scope="session")
def admin(control_plane: ControlPlane) -> Iterator[Cluster]:
    """Give the API server as its administrator uses it, with our CRDs and everything of the RBAC manifest."""
    with closing(Cluster(control_plane)) as cluster:
        cluster.apply(DEPLOY / "chart" / "crds", DEPLOY / "infra" / "deployment-rbac.yaml")
        # The API server delays creations by 2 s while a CRD is newer than that. Once one was let through, none of
        # ours is, and no test measures this.
        cluster.create(identity("first", resource_id="", client_id=""))
        cluster.delete("AzureIdentity", "first")
        yield cluster


@pytest.fixture
def cluster(admin: Cluster) -> Iterator[Cluster]:
    """Give an installed cluster without nodes, pods and identities."""
    yield admin
    admin.delete_all(WIPED)


@pytest.fixture
def sandbox_options() -> SandboxOptions:
    """Give what Azure consists of: node-0 is the node of the run. A test module may give others."""
    return SandboxOptions(nodes=(NodeSpec("node-0", scale_set_id("aks-pool1-12345678-vmss"), "0"),), run_pods=False)


@pytest.fixture
def kubelet(cluster: Cluster, sandbox_options: SandboxOptions) -> Iterator[Kubelet]:
    """Give the node, registered, and what runs pods on it."""
    node = sandbox_options.nodes[0]
    kubelet = Kubelet(cluster, node.name)
    kubelet.register(node.provider_id)
    yield kubelet
    kubelet.disconnect_all()
    reset_redirections()


@pytest.fixture
def azure(control_plane: ControlPlane, sandbox_options: SandboxOptions) -> Iterator[AzureSide]:
    """Give a running Azure, with IMDS at the metadata address of the node."""
    with running_azure(sandbox_options) as side:
        yield side


@pytest.fixture
def processes(kubelet: Kubelet, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Processes]:
    """Give what starts processes, which are stopped before the test's pods and objects go."""
    processes = request.node.stash[RUNNING] = Processes(tmp_path)
    yield processes
    processes.stop_all()


@pytest.fixture
def programs(azure: AzureSide, cluster: Cluster, processes: Processes) -> Programs:
    """Give what starts MIC, NMI and the token client in pods."""
    return Programs(processes, cluster, azure)

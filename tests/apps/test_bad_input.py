"""Bad input of the programs: one line that names the object, the field and the remedy; the rest goes on."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.sandbox.faults import Fault
from apps.sandbox.options import identity_id
from tests.apps.daemons import daemon, until
from tests.apps.stage import stage

GOOD_JSON = {"cloud": "AzurePublicCloud", "useManagedIdentityExtension": True}
KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: c, context: {cluster: c, user: c}}]
users: [{name: c, user: {token: t}}]
current-context: c
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a good kubeconfig and a good azure.json."""
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    (tmp_path / "azure.json").write_text(json.dumps(GOOD_JSON))
    return tmp_path


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server(("", 0)) as listener:
        yield listener.getsockname()[1]


async def said(name: str, *flags: str, **environ: str) -> tuple[int, str]:
    """Run a program that is to end by itself; return its exit code and what it printed."""
    async with daemon(name, *flags, environ=environ) as running:
        return await running.exit_code(), running.output


MIC_FILES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a kubeconfig that is not there": (
        lambda files: (files / "kubeconfig").unlink(),
        ("kubeconfig", "No such file", "--kubeconfig"),
    ),
    "a kubeconfig that is no YAML": (
        lambda files: (files / "kubeconfig").write_text("{"),
        ("kubeconfig", "no YAML", "--kubeconfig"),
    ),
    "an azure.json that is not there": (
        lambda files: (files / "azure.json").unlink(),
        ("azure.json", "cannot be read", "check path"),
    ),
    "an azure.json that is cut off": (
        lambda files: (files / "azure.json").write_text('{"cloud": "Azure'),
        ("azure.json", "neither JSON nor YAML", "correct the syntax"),
    ),
    "an azure.json without a cloud": (
        lambda files: (files / "azure.json").write_text("{}"),
        ("azure.json", "cloud", "AzurePublicCloud"),
    ),
    "an azure.json of an unknown cloud": (
        lambda files: (files / "azure.json").write_text('{"cloud": "Nimbus"}'),
        ("azure.json", "'Nimbus'", "use one of"),
    ),
    "a service principal without its secret": (
        lambda files: (files / "azure.json").write_text(
            '{"cloud": "AzurePublicCloud", "tenantId": "t", "aadClientId": "c"}'
        ),
        ("azure.json", "aadClientSecret", "missing"),
    ),
    "a switch in quotes": (
        lambda files: (files / "azure.json").write_text(
            '{"cloud": "AzurePublicCloud", "useManagedIdentityExtension": "true"}'
        ),
        ("azure.json", "useManagedIdentityExtension", "without"),
    ),
}


@pytest.mark.parametrize(("spoil", "words"), MIC_FILES.values(), ids=MIC_FILES)
async def test_a_file_that_mic_cannot_use(files: Path, spoil: Callable[[Path], object], words: tuple[str, ...]) -> None:
    spoil(files)

    code, output = await said(
        "mic", f"--kubeconfig={files}/kubeconfig", f"--cloudconfig={files}/azure.json", "--http-probe-port=0"
    )

    (line,) = (line for line in output.splitlines() if line.startswith("F"))
    assert code == 1
    assert all(word in line for word in words), line
    assert "Traceback" not in output


SECRET = "a-secret-that-nobody-may-see"


@pytest.mark.parametrize(
    "content",
    [
        f'{{"cloud": "AzurePublicCloud", "aadClientSecret": "{SECRET}", "tena',
        f'{{"cloud": "AzurePublicCloud", "aadClientSecret": ["{SECRET}"]}}',
        f'{{"cloud": "Nimbus", "aadClientSecret": "{SECRET}"}}',
        f'{{"cloud": "AzurePublicCloud", "aadClientId": "c", "aadClientSecret": "{SECRET}"}}',
        f"aadClientSecret: {SECRET}: {SECRET}\n",
    ],
    ids=["cut off", "wrong type", "unknown cloud", "no tenant", "wrong syntax"],
)
async def test_a_wrong_azure_json_is_not_quoted(files: Path, content: str) -> None:
    (files / "azure.json").write_text(content)

    code, output = await said("mic", f"--kubeconfig={files}/kubeconfig", f"--cloudconfig={files}/azure.json")

    assert (code, "azure.json" in output, SECRET in output) == (1, True, False)


async def test_an_unknown_flag_is_named() -> None:
    for name in ("mic", "nmi"):
        code, output = await said(name, "--nope=1")
        assert (code, "nope" in output, "Traceback" in output) == (2, True, False)


async def test_mic_needs_its_namespace() -> None:
    code, output = await said("mic", MIC_POD_NAMESPACE="")

    assert (code, "Traceback" in output) == (1, False)
    assert all(word in output for word in ("MIC_POD_NAMESPACE", "metadata.namespace"))


async def test_nmi_needs_a_node() -> None:
    code, output = await said("nmi", "--node=")

    assert code == 2
    assert all(word in output for word in ("--node", "NODE_NAME"))


async def test_nmi_needs_a_kubeconfig_that_is_there(tmp_path: Path) -> None:
    code, output = await said("nmi", "--node=n", "--allow-network-plugin-kubenet", KUBECONFIG=str(tmp_path / "nothing"))

    assert (code, "Traceback" in output) == (1, False)
    assert all(word in output for word in (f"{tmp_path}/nothing", "KUBECONFIG"))


@pytest.mark.parametrize("content", ["{", "", "[]", "apiVersion: v1\nkind: Config\n"])
async def test_nmi_needs_a_kubeconfig_that_says_where_the_cluster_is(files: Path, content: str) -> None:
    (files / "kubeconfig").write_text(content)

    code, output = await said(
        "nmi", "--node=n", "--allow-network-plugin-kubenet", "--nmi-port=0", KUBECONFIG=f"{files}/kubeconfig"
    )

    (line,) = (line for line in output.splitlines() if line.startswith("F"))
    assert (code, "Traceback" in output) == (1, False)
    assert all(word in line for word in (f"{files}/kubeconfig", "KUBECONFIG"))


@pytest.mark.parametrize("flag", ["--http-probe-port", "--prometheus-port"])
async def test_a_port_of_mic_that_is_taken(files: Path, taken: int, flag: str) -> None:
    others = {"--http-probe-port=0", "--prometheus-port=0"} - {f"{flag}=0"}
    code, output = await said(
        "mic", f"--kubeconfig={files}/kubeconfig", f"--cloudconfig={files}/azure.json", *others, f"{flag}={taken}"
    )

    assert (code, "Traceback" in output) == (1, False)
    assert all(word in output for word in (f":{taken}", "address already in use", flag))


@pytest.mark.parametrize("flag", ["--nmi-port", "--http-probe-port", "--prometheus-port"])
async def test_a_port_of_nmi_that_is_taken(files: Path, taken: int, flag: str) -> None:
    others = {"--nmi-port=0", "--http-probe-port=0", "--prometheus-port=0"} - {f"{flag}=0"}
    own = ("--node=n", "--allow-network-plugin-kubenet", "--interception=false")
    code, output = await said("nmi", *own, *others, f"{flag}={taken}", KUBECONFIG=f"{files}/kubeconfig")

    assert (code, "Traceback" in output) == (1, False)
    assert all(word in output for word in (f":{taken}", "address already in use", flag))


async def test_bad_objects_are_named_and_stop_nobody_else() -> None:
    async with stage() as at_work:
        mic = await at_work.mic()
        await mic.line("pod cache synchronized")
        await at_work.first_work()
        await at_work.nmi()
        at_work.azure_identity("bent", resourceID="/subscriptions/s/bent", clientID="c")
        at_work.binding("bent")
        at_work.binding("loose", identity="nobody")
        for kind, name, spec in (
            ("Node", "bare", {}),
            ("Pod", "lost", {"nodeName": "bare", "containers": [{"name": "main", "image": "none"}]}),
        ):
            metadata = {"name": name, "namespace": "default", "labels": {"aadpodidbinding": "good"}}
            at_work.sandbox.cluster.create({"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec})
        at_work.identity("good")
        await at_work.pod("bent")
        await at_work.pod("loose")
        address = await at_work.pod("good")

        reply = await at_work.token(address)

        assert reply.status == 200
        for words in (
            ("AzureIdentity default/bent", "invalid resource id", "PI401", "correct spec.resourceID"),
            ("AzureIdentityBinding default/loose", "AzureIdentity default/nobody", "PI103", "create the AzureIdentity"),
            ("node bare", "pod default/lost", "providerID", "PI108"),
        ):
            await mic.line(*words)
        assert "Traceback" not in mic.output


async def test_a_corrected_object_is_taken_up_at_once() -> None:
    """Nothing was lost: neither the pod nor the binding has to be made again."""
    async with stage() as at_work:
        mic = await at_work.mic()
        await at_work.nmi()
        at_work.azure_identity("bent", resourceID="/nonsense", clientID="c")
        at_work.azure_identity("odd", type=7)
        at_work.binding("bent")
        address = await at_work.pod("bent")
        await mic.line("AzureIdentity default/odd is ignored", "spec.type", "PI402")
        await mic.line("AzureIdentity default/bent is ignored", "PI401")
        made = at_work.sandbox.azure.add_identity(identity_id("bent"))

        def correct(body: dict[str, Any]) -> None:
            body["spec"] |= {"resourceID": made.resource_id, "clientID": made.principal.client_id}

        at_work.sandbox.cluster.change("azureidentities", "default", "bent", correct)
        await until(lambda: at_work.assignments.get("bent/bent") == "Assigned")

        assert (await at_work.token(address)).status == 200


async def test_an_identity_that_azure_refuses_stops_nobody_else() -> None:
    async with stage() as at_work:
        mic = await at_work.mic()
        await mic.line("pod cache synchronized")
        await at_work.first_work()
        await at_work.nmi()
        at_work.azure_identity("gone", resourceID=identity_id("gone"), clientID="d0c5f1b2-0000-4000-8000-000000000000")
        at_work.binding("gone")
        at_work.identity("good")
        await at_work.pod("gone")
        address = await at_work.pod("good")

        reply = await at_work.token(address)

        assert reply.status == 200
        await mic.line("removing", "/gone", "erroneous")
        (event,) = (
            event
            for event in at_work.sandbox.cluster.objects("events")
            if event["reason"] == "binding apply error" and event["involvedObject"]["name"] == "gone"
        )
        assert all(word in event["message"] for word in ("default/gone", "PI501", "Managed Identity Operator"))


async def test_an_api_server_that_is_away_ends_nothing() -> None:
    async with stage() as at_work:
        nmi = await at_work.nmi()
        at_work.sandbox.faults.add(Fault("kube", status=500, times=5))
        mic = await at_work.mic()

        await mic.line("pod cache synchronized")

        assert (mic.process.returncode, nmi.process.returncode) == (None, None)

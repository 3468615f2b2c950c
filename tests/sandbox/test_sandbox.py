"""The sandbox as a whole: its files, its nodes, its command, kubectl."""

import asyncio
import dataclasses
import json
import shutil
import signal
import stat
import sys
from pathlib import Path

import pytest
import yaml

from apps.sandbox.cli import main
from apps.sandbox.options import NodeSpec, SandboxOptions, scale_set_id, scale_set_nodes, vm_id
from apps.sandbox.sandbox import Sandbox
from tests.sandbox.objects import CRD, pod, thing

KUBECTL = shutil.which("kubectl")


async def test_files_point_at_the_servers_and_are_private(sandbox: Sandbox) -> None:
    kubeconfig = yaml.safe_load(sandbox.kubeconfig.read_text())
    cloud = json.loads(sandbox.environment_json.read_text())
    config = json.loads(sandbox.azure_json.read_text())

    assert kubeconfig["clusters"][0]["cluster"]["server"] == sandbox.kube_tls_url
    assert (cloud["resourceManagerEndpoint"], cloud["tokenAudience"]) == (f"{sandbox.arm_url}/",) * 2
    assert cloud["activeDirectoryEndpoint"] == f"{sandbox.entra_url}/"
    assert (config["cloud"], config["useManagedIdentityExtension"]) == ("AzureStackCloud", False)
    for path in (sandbox.kubeconfig, sandbox.azure_json, sandbox.state_dir / "server.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_nodes_carry_provider_ids_as_the_cloud_provider_writes_them(options: SandboxOptions) -> None:
    nodes = (NodeSpec("a", scale_set_id("set", "MC_Group"), "3"), NodeSpec("b", vm_id("vm", "MC_Group")))
    async with Sandbox(dataclasses.replace(options, nodes=nodes)) as sandbox:
        bodies = {body["metadata"]["name"]: body for body in sandbox.cluster.objects("nodes")}

    below = "azure:///subscriptions/5a4db0c5-0000-4000-8000-000000000001/resourceGroups/mc_group/providers/"
    assert {name: body["spec"]["providerID"] for name, body in bodies.items()} == {
        "a": f"{below}Microsoft.Compute/virtualMachineScaleSets/set/virtualMachines/3",
        "b": f"{below}Microsoft.Compute/virtualMachines/vm",
    }


async def test_crds_can_be_there_from_the_start(options: SandboxOptions, tmp_path: Path) -> None:
    path = tmp_path / "crd.yaml"
    path.write_text(yaml.safe_dump(CRD))
    async with Sandbox(dataclasses.replace(options, crds=(path,))) as sandbox:
        sandbox.cluster.create(thing("a", size=1))

        assert [body["spec"] for body in sandbox.cluster.objects("things")] == [{"size": 1}]


async def test_a_temporary_directory_is_removed_and_a_given_one_is_kept(options: SandboxOptions) -> None:
    async with Sandbox(dataclasses.replace(options, state_dir=None)) as temporary:
        assert temporary.kubeconfig.exists()
    async with Sandbox(options) as kept:
        pass

    assert not temporary.state_dir.exists()
    assert kept.kubeconfig.exists()


async def test_a_failed_start_leaves_nothing_behind(options: SandboxOptions, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("kind: Nothing\napiVersion: v1\n")
    sandbox = Sandbox(dataclasses.replace(options, state_dir=None, crds=(broken,)))

    with pytest.raises(KeyError, match="Nothing"):
        async with sandbox:
            pass

    assert not sandbox.state_dir.exists()


async def test_two_sandboxes_can_run_side_by_side(options: SandboxOptions, tmp_path: Path) -> None:
    other = dataclasses.replace(options, nodes=scale_set_nodes(3), state_dir=tmp_path / "other")
    async with Sandbox(options) as first, Sandbox(other) as second:
        assert len(second.imds_urls) == 3
        assert first.kube_url != second.kube_url


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_tells_how_to_use_it_and_ends_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    code = "import sys; from apps.sandbox.cli import main; sys.exit(main(sys.argv[1:]))"
    argv = ["--nodes", "2", "--operation-seconds", "0.1", "--state-dir", str(tmp_path / "state")]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, *argv), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(10):
        told = b""
        while b"curl http" not in told or not told.endswith(b"\n"):
            told += await process.stdout.read(4096)
    process.send_signal(number)
    rest = await process.communicate()

    assert (process.returncode, rest) == (0, (b"", b""))
    lines = told.decode().splitlines()
    assert f"export KUBECONFIG={tmp_path}/state/kubeconfig" in lines
    assert len([line for line in lines if line.startswith("#   aks-pool1")]) == 2
    assert json.loads((tmp_path / "state" / "azure.json").read_text())["aadClientSecret"] not in told.decode()


@pytest.mark.parametrize("argv", [["--nodes", "0"], ["--nodes", "many"], ["--unknown"]])
def test_the_command_refuses_what_it_does_not_know(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)

    assert ended.value.code == 2
    assert argv[0] in capsys.readouterr().err


def test_the_command_says_what_is_wrong_with_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()

    assert main(["--state-dir", str(tmp_path / "file")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed; the HTTP tests cover the same")
async def test_kubectl_applies_gets_describes_and_deletes(sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "objects.yaml"
    path.write_text(yaml.safe_dump_all([thing("a", size=1), pod("p", app="x")]))
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(thing("b", sise=1)))
    about = {"kind": "Thing", "name": "a", "namespace": "default", "uid": ""}

    assert await _kubectl(sandbox, "apply", "-f", str(path)) == "thing.test.example/a created\npod/p created\n"
    assert await _kubectl(sandbox, "apply", "-f", str(path)) == "thing.test.example/a unchanged\npod/p unchanged\n"
    assert 'unknown field "spec.sise"' in await _kubectl(sandbox, "apply", "-f", str(wrong), fails=True)
    about["uid"] = sandbox.cluster.objects("things")[0]["metadata"]["uid"]
    event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": about}
    sandbox.cluster.create({**event, "reason": "Tested", "message": "it was seen", "type": "Normal"})
    assert (await _kubectl(sandbox, "get", "things")).split() == ["NAME", "SIZE", "a", "1"]
    assert (await _kubectl(sandbox, "get", "pods", "-l", "app=x", "-o", "name")) == "pod/p\n"
    assert "it was seen" in await _kubectl(sandbox, "describe", "thing", "a")
    assert "waiting to start" in await _kubectl(sandbox, "logs", "p", fails=True)
    assert await _kubectl(sandbox, "delete", "-f", str(path)) == ('thing.test.example "a" deleted\npod "p" deleted\n')


async def _kubectl(sandbox: Sandbox, *argv: str, fails: bool = False) -> str:
    cache = f"--cache-dir={sandbox.state_dir / 'cache'}"
    process = await asyncio.create_subprocess_exec(
        *(str(KUBECTL), f"--kubeconfig={sandbox.kubeconfig}", cache, *argv),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(10):
        told, _ = await process.communicate()
    assert (process.returncode != 0) is fails, told.decode()
    return told.decode()

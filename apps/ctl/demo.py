"""The tutorial, step by step, on the sandbox: the same two programs and the same manifests as on a real cluster."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from apps.ctl.cluster_client import ClusterClient, DemoFailed, create_identity
from apps.ctl.programs import Program, ProgramEnded
from apps.sandbox.options import RESOURCE_GROUP, SUBSCRIPTION, SandboxOptions, vm_id
from apps.sandbox.options import Program as Image
from apps.sandbox.sandbox import Sandbox

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
STEP_S = 20.0
"""How long one step may take."""


@dataclass(slots=True)
class _Stage:
    """What the steps work with."""

    sandbox: Sandbox
    cluster: ClusterClient
    mic: Program
    nmi: Program


def main(argv: Sequence[str]) -> int:
    """Run the demo; returns 0 only if everything happened."""
    if argv:
        print("usage: podidentity demo", file=sys.stderr)
        return 2
    if not DEPLOY.is_dir():
        print(f"podidentity demo: no manifests at {DEPLOY}: run it in a checkout of the project", file=sys.stderr)
        return 1
    try:
        return asyncio.run(_interruptible())
    except (DemoFailed, ProgramEnded, httpx.HTTPError, OSError) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\ninterrupted; everything has been stopped", file=sys.stderr)
        return 130


async def _interruptible() -> int:
    """Let SIGTERM end the demo as Ctrl-C does: through the context managers, so that no process is left."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    began_s = time.monotonic()
    async with AsyncExitStack() as stack:
        await _walk(await _set_up(stack))
    _say(f"\nEverything happened, in {time.monotonic() - began_s:.1f} s; all processes have been stopped.")
    return 0


async def _set_up(stack: AsyncExitStack) -> _Stage:
    _title("A cluster and an Azure, on loopback addresses of this machine")
    nmi_port = _free_port()
    options = SandboxOptions(crds=tuple(sorted((DEPLOY / "chart/crds").glob("*.yaml"))), images=_images(nmi_port))
    sandbox = await stack.enter_async_context(Sandbox(options))
    sandbox.azure.add_host(vm_id("jumpbox"), computer_name="jumpbox")
    node = options.nodes[0].name
    _say(f"node {node}, on a scale set; Azure Resource Manager, Entra ID and the node's metadata service answer")
    environ = {**os.environ, **sandbox.client_environment, "MIC_POD_NAMESPACE": "default"}
    metadata_host, _, metadata_port = sandbox.imds_urls[node].removeprefix("http://").partition(":")

    _title("MIC and NMI start, with the original's flags")
    any_ports = ("--http-probe-port=0", "--prometheus-port=0")
    mic_flags = (f"--kubeconfig={sandbox.kubeconfig}", f"--cloudconfig={sandbox.azure_json}", *any_ports)
    nmi_flags = (
        *(f"--node={node}", f"--nmi-port={nmi_port}"),
        *(f"--metadata-ip={metadata_host}", f"--metadata-port={metadata_port}", "--interception=false"),
        *("--allow-network-plugin-kubenet", *any_ports),
    )
    mic = await _start(stack, "mic", mic_flags, environ)
    nmi = await _start(stack, "nmi", nmi_flags, environ)
    await mic.line("pod cache synchronized", STEP_S)
    await nmi.line("listening on", STEP_S)
    cluster = await stack.enter_async_context(ClusterClient(sandbox.kube_url, sandbox.token))
    return _Stage(sandbox, cluster, mic, nmi)


def _images(nmi_port: int) -> Mapping[str, Image]:
    """What the demo's image runs. Without iptables, its requests reach NMI by the variable that all SDKs heed."""
    authority = f"http://127.0.0.1:{nmi_port}"
    argv = (sys.executable, "-m", "apps.demo")
    return {"podidentity-demo": Image(argv, {"AZURE_POD_IDENTITY_AUTHORITY_HOST": authority})}


async def _start(stack: AsyncExitStack, name: str, flags: Sequence[str], environ: Mapping[str, str]) -> Program:
    _say(f"$ {name} {' '.join(flags)}")
    return await stack.enter_async_context(Program(name, (sys.executable, "-m", f"apps.{name}", *flags), environ))


async def _walk(stage: _Stage) -> None:
    _title("An identity in Azure (az identity create)")
    identity = await create_identity(stage.sandbox, "demo-aad1")
    _say(f"{identity.resource_id}\nclient ID {identity.client_id}")

    _title("AzureIdentity, AzureIdentityBinding and the demo pod (kubectl apply -f deploy/demo)")
    values = {
        "<RESOURCE_ID>": identity.resource_id,
        "<CLIENT_ID>": identity.client_id,
        "<SUBSCRIPTION_ID>": SUBSCRIPTION,
        "<RESOURCE_GROUP>": RESOURCE_GROUP,
    }
    for name in ("aadpodidentity", "aadpodidentitybinding", "deployment"):
        for manifest in yaml.safe_load_all(_filled(DEPLOY / f"demo/{name}.yaml", values)):
            if manifest["kind"] == "Deployment":
                _point_at(stage.sandbox, manifest)
            await stage.cluster.create(manifest)
            _say(f"{manifest['kind'].lower()}/{manifest['metadata']['name']} created")
    began_s = time.monotonic()

    _title("MIC assigns: an AzureAssignedIdentity, and one PATCH of the node's scale set")
    _say(await stage.mic.line("updating user-assigned identities", STEP_S))
    _say(await stage.mic.line("status to Assigned", STEP_S))
    event = await stage.cluster.event("binding applied", STEP_S)
    _say(f"Event {event['type']} {event['reason']!r}: {event['message']}")
    _say(await stage.cluster.table("azureassignedidentities"))

    _title("NMI answers the pod (the line to look for: status (200))")
    _say(await stage.nmi.line("status (200)", STEP_S))
    first_token_s = time.monotonic() - began_s

    _title("What the demo pod got, through azure-identity's ManagedIdentityCredential (kubectl logs)")
    log = await stage.cluster.pod_log("app=demo", "virtual machines:", STEP_S)
    _say(log)
    if "FAILED" in log:
        raise DemoFailed("the demo pod could not do all of its steps")
    waited_s = stage.sandbox.options.operation_s
    _say(f"\nFrom the pod's creation to its first token: {first_token_s:.2f} s, of which Azure took {waited_s:.2f} s.")


def _point_at(sandbox: Sandbox, deployment: dict[str, object]) -> None:
    """Tell the demo pod where this Azure is; in the public cloud it knows."""
    template = deployment["spec"]["template"]  # type: ignore[index]
    template["spec"]["containers"][0]["env"] = [
        {"name": "RESOURCE_MANAGER", "value": sandbox.arm_url},
        {"name": "SSL_CERT_FILE", "value": str(sandbox.ca_file)},
    ]


def _filled(path: Path, values: Mapping[str, str]) -> str:
    text = path.read_text(encoding="utf-8")
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    return text


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _title(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _say(text: str) -> None:
    print("\n".join(f"   {line}" for line in text.splitlines()) if text.strip() else text, flush=True)

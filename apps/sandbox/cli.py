"""`podidentity sandbox`: a sandbox of its own, and how to point clients at it."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from apps.sandbox.options import SUBSCRIPTION, TENANT, SandboxOptions, scale_set_nodes
from apps.sandbox.sandbox import Sandbox


def main(argv: Sequence[str]) -> int:
    """Run a sandbox until SIGINT or SIGTERM; return the exit code."""
    arguments = _parser().parse_args(argv)
    options = SandboxOptions(
        nodes=scale_set_nodes(arguments.nodes),
        operation_s=arguments.operation_seconds,
        state_dir=arguments.state_dir,
    )
    try:
        asyncio.run(serve(options))
    except OSError as error:
        print(f"podidentity sandbox: {error}", file=sys.stderr)
        return 1
    return 0


async def serve(options: SandboxOptions) -> None:
    """Start a sandbox, print how to use it and keep it up until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        async with Sandbox(options) as sandbox:
            print(guide(sandbox), flush=True)
            await stop.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def guide(sandbox: Sandbox) -> str:
    """Return what a user needs to point kubectl, MIC, NMI and Azure SDKs at *sandbox*: shell lines and comments."""
    exports = [f"export {key}={shlex.quote(value)}" for key, value in sandbox.client_environment.items()]
    nodes = [f"#   {name}: {url}" for name, url in sandbox.imds_urls.items()]
    return "\n".join(
        [
            "# The sandbox is up; Ctrl-C ends it. In another shell:",
            *exports,
            "# kubectl then works as usual; install the CRDs first: kubectl apply -f deploy/chart/crds",
            "# MIC takes --kubeconfig and --cloudconfig with these files:",
            f"#   kubeconfig {sandbox.kubeconfig}",
            f"#   azure.json {sandbox.azure_json} (the service principal's secret is in there)",
            f"# Azure Resource Manager: {sandbox.arm_url}, subscription {SUBSCRIPTION}",
            f"# Entra ID: {sandbox.entra_url}, tenant {TENANT} (SDKs: disable_instance_discovery=True)",
            "# Instance metadata of each node (AZURE_POD_IDENTITY_AUTHORITY_HOST):",
            *nodes,
            f"# Faults, requests seen, operations: curl {sandbox.control_url}",
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="podidentity sandbox", description="A cluster and an Azure in one process, on loopback addresses."
    )
    parser.add_argument("--nodes", type=_positive, default=1, metavar="N", help="nodes on one scale set (1)")
    parser.add_argument(
        "--operation-seconds", type=float, default=2.0, metavar="S", help="how long ARM takes to change a host (2)"
    )
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="where its files go (a temporary directory)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000")
    return int(text)

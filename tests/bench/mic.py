"""MIC as a process of its own with a real API server: bursts of pods, and how long until the last has its identity."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

from tests.bench.figures import Figure
from tests.bench.mic_cases import measure
from tests.cluster.build import APISERVER, find_servers
from tests.cluster.errors import MachineLacks
from tests.cluster.isolation import require_machine


def run() -> list[Figure]:
    """Measure with MIC's default settings; takes seven to ten minutes.

    Where the machine cannot have a real API server, it is the sandbox's, which one line says.
    """
    try:
        require_machine()
        find_servers()
    except MachineLacks as error:
        print(f"on the sandbox's API server: {error}\n", flush=True)
        return asyncio.run(_on_sandbox())
    print(f"on kube-apiserver {APISERVER.version()} and etcd\n", flush=True)
    return _on_real_server()


def _on_real_server() -> list[Figure]:
    """In a process of its own, which goes into namespaces and does not come back."""
    argv = [sys.executable, "-m", "tests.bench.mic_cluster"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        figures = [Figure(**json.loads(line)) for line in process.stdout]
    if process.returncode:
        sys.exit("MIC's benchmark failed; it has said why")
    return figures


async def _on_sandbox() -> list[Figure]:
    return [figure async for figure in measure(None)]

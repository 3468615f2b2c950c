"""MIC's benchmark in namespaces of its own, with a real API server: prints each figure as a line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

import uvloop

from tests.bench.mic_cases import measure
from tests.bench.mic_server import ApiServer, real_server
from tests.cluster.build import find_servers
from tests.cluster.isolation import enter


async def _print(real: ApiServer) -> None:
    async for figure in measure(real):
        print(json.dumps(asdict(figure)), flush=True)


if __name__ == "__main__":
    servers = find_servers()  # may need the network, which is left behind now
    enter()
    with real_server(servers) as real:
        uvloop.run(_print(real))

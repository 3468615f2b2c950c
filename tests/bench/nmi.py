"""NMI beside an empty application on the same server: what a request costs each of them, and how many they answer."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from tests.bench import nmi_cold, nmi_memory, processes
from tests.bench.figures import Figure
from tests.bench.load import Job
from tests.bench.measuring import Clients, InTurn, Server, clients, in_turn
from tests.bench.node import IDENTITIES, WARM, Node, node
from tests.bench.processes import CLIENTS_CORE, SERVERS_CORE, pinned, program

PODS = (110, 1000)
SECONDS = 0.3
CASES = tuple(Job(0, WARM, number, close, SECONDS) for close in (False, True) for number in (1, 16, 64))
ROUNDS = 7
ORIGINAL_PER_S = 1033
"""The original on such a machine, 16 connections, 110 pods; more pods make it slower (docs/performance.md)."""


def run() -> list[Figure]:
    """Measure; takes about three minutes."""
    with pinned(CLIENTS_CORE):  # the sandbox's metadata service must not take NMI's core
        return asyncio.run(_run())


async def _run() -> list[Figure]:
    figures: list[Figure] = []
    async with clients() as asking, _empty() as empty:
        for pods in PODS:
            async with node(pods) as measured:
                figures += await _one_node(asking, measured, empty)
        figures.append(await nmi_memory.answered(asking))
    return [*figures, await nmi_memory.kept()]


async def _one_node(asking: Clients, measured: Node, empty: Server) -> list[Figure]:
    usual = measured.pods == PODS[0]
    figures = await _warm(asking, measured, empty)
    figures += await nmi_cold.measure(asking, measured, empty, (0.0, nmi_cold.SLOW_S) if usual else (nmi_cold.SLOW_S,))
    figures.append(await nmi_cold.one_key(asking, measured))
    if usual:
        figures.append(await nmi_cold.meanwhile(asking, measured))
    figures.append(nmi_memory.after_load(measured))
    if usual:
        figures.append(await nmi_memory.refused(asking, measured))
    return figures


async def _warm(asking: Clients, measured: Node, empty: Server) -> list[Figure]:
    await asking.load(measured.server, Job(0, WARM, IDENTITIES, requests=IDENTITIES))  # fetches each identity's token
    figures: list[Figure] = []
    for case in CASES:
        job = measured.job(case)
        runs = await in_turn(asking, {"nmi": measured.server, "empty": empty}, job, ROUNDS)
        figures += _figures(measured.case(job), runs, aimed=job.connections == 16 and not job.close)
    return figures


def _figures(case: str, runs: InTurn, *, aimed: bool) -> Iterator[Figure]:
    ours, floor = runs.median("nmi"), runs.median("empty")
    note = f"empty app {floor.seen.per_s:,.0f}/s; NMI {ours.busy:.0%} busy"
    yield Figure(f"warm, {case}", ours.seen.per_s, "/s", f">= {10 * ORIGINAL_PER_S}" if aimed else "", note)
    note = f"p50 {ours.seen.p50_ms:.2f} ms; empty app {floor.seen.p50_ms:.2f} and {floor.seen.p99_ms:.2f} ms"
    yield Figure("  99th percentile", ours.seen.p99_ms, "ms", "< 5" if aimed else "", note)
    note = f"{ours.cpu_us:.0f} us, empty app {floor.cpu_us:.0f} us"
    yield Figure("  CPU, empty app = 1", runs.cpu_ratio("nmi", "empty"), "x", "<= 1.5", note)


@asynccontextmanager
async def _empty() -> AsyncIterator[Server]:
    async with program(("-m", "tests.bench.empty"), os.environ, core=SERVERS_CORE, stdout=PIPE) as process:
        assert process.stdout is not None
        yield Server(process.pid, int(await process.stdout.readline()))


def pss_mb(process: asyncio.subprocess.Process) -> float:
    """Return the memory of *process* in MiB, with its share of what it shares."""
    return processes.pss_mb(process.pid)

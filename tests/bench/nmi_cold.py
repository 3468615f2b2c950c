"""NMI without the token that is asked for: what it makes of the metadata service's 20 calls a second."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterable, Iterator
from itertools import count

from tests.bench.figures import Figure
from tests.bench.load import Job
from tests.bench.measuring import Clients, Load, Server, clients
from tests.bench.node import COLD, IDENTITIES, WARM, Node

CASES = (
    Job(0, COLD, 1, requests=20),
    Job(0, COLD, 16, requests=60),
    Job(0, COLD, 64, requests=80),
    Job(0, COLD, 16, close=True, requests=60),
)
SLOW_S = 0.06
"""What IMDS takes for a token."""
PER_S = 20
"""What IMDS allows a node."""
PAUSE_S = 1.2
"""After so long no earlier call counts against the limit."""
AT_ONCE = 50
ROUNDS = 5
SECONDS = 2.0
"""As long as IMDS takes for the cold requests that wait meanwhile."""

_first = count(step=1000)


async def measure(asking: Clients, measured: Node, empty: Server, latencies_s: Iterable[float]) -> list[Figure]:
    """Measure while IMDS takes each of *latencies_s* for a token; about 12 s each."""
    figures: list[Figure] = []
    for latency_s in latencies_s:
        measured.slow_imds(latency_s)
        for case in CASES:
            job = measured.job(case, number=next(_first))
            floor = await asking.load(empty, job)
            ours, calls = await _cold(asking, measured, job)
            figures += _figures(measured.case(job), latency_s, job, ours, floor, calls)
    return figures


async def _cold(asking: Clients, measured: Node, job: Job) -> tuple[Load, str]:
    """Do *job* when nothing counts against the limit; returns also what IMDS saw of it."""
    await asyncio.sleep(PAUSE_S)
    measured.imds_requests()
    ours = await asking.load(measured.server, job)
    calls = measured.imds_requests()
    return ours, f"{len(calls)} calls of IMDS, {sum(call.status != 200 for call in calls)} refused"


def _figures(case: str, latency_s: float, job: Job, ours: Load, floor: Load, calls: str) -> Iterator[Figure]:
    name = f"{job.requests} cold keys, IMDS {latency_s * 1000:.0f} ms, {case}"
    budget = f"<= {job.requests / PER_S:g}" if job.connections > 1 else ""
    waits = f"p50 {ours.seen.p50_ms:.0f} ms, p99 {ours.seen.p99_ms:.0f} ms; {calls}"
    yield Figure(name, job.requests / ours.seen.per_s, "s", budget, waits)
    cpu = f"empty app {floor.cpu_us:.0f} us"
    yield Figure("  CPU of a cold request", ours.cpu_us, "us", "", cpu)


async def one_key(asking: Clients, measured: Node) -> Figure:
    """Let many ask at once for the same token."""
    await asyncio.sleep(PAUSE_S)
    measured.imds_requests()
    same = Job(0, COLD.format(next(_first)), AT_ONCE, requests=AT_ONCE, pods=measured.pods, step=IDENTITIES)
    seen = (await asking.load(measured.server, same)).seen
    note = f"all answered, the last within {seen.p99_ms:.0f} ms"
    calls = len(measured.imds_requests())
    return Figure(f"calls of IMDS for {AT_ONCE} cold requests at once for one key", calls, "calls", "= 1", note)


async def meanwhile(asking: Clients, measured: Node) -> Figure:
    """Compare warm requests alone with warm ones while more cold ones wait than IMDS takes."""
    measured.slow_imds(SLOW_S)
    warm = measured.job(Job(0, WARM, 16, seconds=SECONDS))
    quiet, busy = [], []
    async with clients() as others:
        for _ in range(ROUNDS):
            await asyncio.sleep(PAUSE_S)
            quiet.append((await asking.load(measured.server, warm)).seen)
            cold = measured.job(Job(0, COLD, 40, requests=40), number=next(_first))
            waiting = asyncio.create_task(others.load(measured.server, cold))
            busy.append((await asking.load(measured.server, warm)).seen)
            await waiting
    ratio = statistics.median(one.per_s / other.per_s for one, other in zip(busy, quiet, strict=True))
    per_s, p99_ms = (statistics.median(getattr(seen, field) for seen in busy) for field in ("per_s", "p99_ms"))
    note = f"{per_s:,.0f}/s, p99 {p99_ms:.1f} ms while 40 cold keys wait for IMDS at 60 ms and 20 a second; alone = 1"
    return Figure(f"warm while IMDS is slow, {measured.case(warm)}", ratio, "x", ">= 0.9", note)

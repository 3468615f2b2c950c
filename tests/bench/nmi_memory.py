"""What NMI keeps in memory, also when pods ask for things that nobody has asked for before.

Distinct resources that are answered come no faster than IMDS allows: 100,000 take 83 minutes. So three measurements
stand for that one: 100,000 that the whole process refuses; as many as fill the cache, answered by a process whose
limit towards IMDS is lifted; and 100,000 through the cache alone.
"""

from __future__ import annotations

import os
from asyncio.subprocess import PIPE

from podidentity_core.services.token_cache import CAPACITY
from tests.bench.figures import Figure
from tests.bench.load import Job
from tests.bench.measuring import Clients
from tests.bench.node import COLD, Node, node
from tests.bench.processes import program, pss_mb

DISTINCT = 100_000
TOKENS = CAPACITY + 100
_BUDGET = "< 75"


def after_load(measured: Node) -> Figure:
    """Return the memory after what has been measured before."""
    budget = _BUDGET if measured.pods == 110 else ""
    return Figure(f"memory (PSS) after load, {measured.pods} pods", pss_mb(measured.server.pid), "MB", budget)


async def refused(asking: Clients, measured: Node) -> Figure:
    """Let the pod without an identity ask for 100,000 different resources."""
    before_mb = pss_mb(measured.server.pid)
    job = Job(0, COLD, 16, requests=DISTINCT, first_pod=measured.pods, pods=1, status=404)
    load = await asking.load(measured.server, job)
    note = f"before {before_mb:.1f} MB; {load.seen.per_s:,.0f}/s, {load.cpu_us:.0f} us of CPU each"
    return Figure(f"  and after {DISTINCT:,} resources refused", pss_mb(measured.server.pid), "MB", _BUDGET, note)


async def answered(asking: Clients) -> Figure:
    """Let pods have tokens for more resources than NMI keeps tokens, from a metadata service without limits."""
    async with node(110, limited=False) as measured:
        before_mb = pss_mb(measured.server.pid)
        load = await asking.load(measured.server, Job(0, COLD, 5, requests=TOKENS))
        note = f"before {before_mb:.1f} MB; no limit of calls; {load.cpu_us / 1000:.1f} ms of CPU each"
        name = f"memory (PSS) after {TOKENS:,} resources answered, 110 pods"
        return Figure(name, pss_mb(measured.server.pid), "MB", _BUDGET, note)


async def kept() -> Figure:
    """Let the cache alone have 100,000 tokens, in a process of its own."""
    argv = ("-m", "tests.bench.token_memory", str(DISTINCT))
    async with program(argv, os.environ, stdout=PIPE) as process:
        assert process.stdout is not None
        number, before_mb, after_mb = map(float, (await process.stdout.readline()).split())
    note = f"keeps {number:.0f} of them"
    return Figure(f"growth (PSS) of the cache after {DISTINCT:,} tokens", after_mb - before_mb, "MB", "", note)

"""Load on servers that take turns on one core, so that a busy machine is unfair to none of them."""

from __future__ import annotations

import json
import os
import statistics
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace

from tests.bench.load import Job, Seen
from tests.bench.processes import CLIENTS_CORE, cpu_s, program


@dataclass(frozen=True)
class Server:
    """A process that listens."""

    pid: int
    port: int


@dataclass(frozen=True)
class Load:
    """What clients saw of a server, what each request cost it, and which part of the time it was busy."""

    seen: Seen
    cpu_us: float
    busy: float


class Clients:
    """The clients' process."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._jobs, self._results = process.stdin, process.stdout

    async def load(self, server: Server, job: Job) -> Load:
        """Do *job* on *server*, whatever port it names. Raises RuntimeError when an answer is not the expected one."""
        used_s, began_s = cpu_s(server.pid), time.perf_counter()
        self._jobs.write(json.dumps(asdict(replace(job, port=server.port))).encode() + b"\n")
        line = await self._results.readline()
        if not line:
            raise RuntimeError("the clients failed; they have said why")
        used_s, took_s = cpu_s(server.pid) - used_s, time.perf_counter() - began_s
        seen = Seen(**json.loads(line))
        return Load(seen, used_s / seen.requests * 1e6, used_s / took_s)


@asynccontextmanager
async def clients() -> AsyncIterator[Clients]:
    """The clients' process, on a core of its own."""
    async with program(("-m", "tests.bench.load"), os.environ, core=CLIENTS_CORE, stdin=PIPE, stdout=PIPE) as process:
        yield Clients(process)


class InTurn:
    """Runs of several servers under the same load: A B, B A, A B, ..."""

    def __init__(self, runs: Mapping[str, list[Load]]) -> None:
        self._runs = runs

    def median(self, name: str) -> Load:
        """Return the median of each value of a server's runs."""
        runs = self._runs[name]
        seen = {field: statistics.median(getattr(run.seen, field) for run in runs) for field in asdict(runs[0].seen)}
        cpu_us = statistics.median(run.cpu_us for run in runs)
        return Load(Seen(**seen), cpu_us, statistics.median(run.busy for run in runs))

    def cpu_ratio(self, one: str, other: str) -> float:
        """Return the median of how many times the other's processor time a request of *one* took, run by run."""
        pairs = zip(self._runs[one], self._runs[other], strict=True)
        return statistics.median(mine.cpu_us / its.cpu_us for mine, its in pairs)


async def in_turn(asking: Clients, servers: Mapping[str, Server], job: Job, rounds: int) -> InTurn:
    """Do *job* on each of *servers*, *rounds* times, the other way round each time."""
    runs: dict[str, list[Load]] = {name: [] for name in servers}
    order = list(servers)
    for _ in range(rounds):
        for name in order:
            runs[name].append(await asking.load(servers[name], job))
        order.reverse()
    return InTurn(runs)

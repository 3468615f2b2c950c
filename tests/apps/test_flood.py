"""Thousands of hostile connections against a server in a process of its own: its memory, and who else is served."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest
import pytest_asyncio

from tests.apps.raw_http import all_parsed, exchange

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
ELSEWHERE = "127.4.9.9"
MOST_MB = 192
"""What all floods together may leave: NMI's pod may have 512 MiB, and takes 75 without."""
SPARE_FILES = 1000
"""What the test's process itself needs."""


@dataclass(frozen=True)
class Flooded:
    """A server with an application that does nothing."""

    process: Process
    port: int
    memory_mb: float
    """Before all."""

    def grown_mb(self) -> float:
        return memory_mb(self.process) - self.memory_mb


def memory_mb(process: Process) -> float:
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Flooded]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.empty", env=os.environ, stdout=PIPE
    )
    assert process.stdout is not None
    port = int(await process.stdout.readline())
    await exchange(port, LAST, address=ELSEWHERE)
    yield Flooded(process, port, memory_mb(process))
    process.terminate()
    await process.wait()


@contextmanager
def files(number: int) -> Iterator[int]:
    """Let this process have *number* files and some, or as many as it may; says how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number + SPARE_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, number + SPARE_FILES), hard))
    yield min(number, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@dataclass(frozen=True)
class Flood:
    """So many connections, from so many addresses, that each send this and then neither read nor end."""

    connections: int
    addresses: int
    raw: bytes

    def begin(self, port: int, number: int, stack: ExitStack) -> None:
        """Connect *number* times; blocks."""
        for one in range(number):
            made = stack.enter_context(socket.socket())
            made.bind((f"127.4.0.{one % self.addresses + 1}", 0))
            made.settimeout(60)
            made.connect(("127.0.0.1", port))
            made.setblocking(False)
            try:
                made.send(self.raw)
            except OSError:
                assert self.raw  # it was refused already, or its buffer is full


FLOODS = {
    "one address that says nothing": Flood(5000, 1, b""),
    "one address with half a request line": Flood(5000, 1, b"GET /x HT"),
    "20 addresses with half a request line": Flood(5000, 20, b"GET /x HT"),
    "20 addresses with 31 KiB of a header": Flood(2000, 20, b"GET / HTTP/1.1\r\nX: " + b"x" * 31_000),
    "20 addresses with 120 headers": Flood(2000, 20, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 120),
    "20 addresses with headers without end": Flood(2000, 20, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000),
    "20 addresses with a path without end": Flood(2000, 20, b"GET /" + b"x" * 120_000),
    "clients that ask 500 times and read nothing": Flood(300, 3, ASK * 500),
    "clients that send bodies without end": Flood(
        300, 3, LAST[:-2] + b"Content-Length: 99999999\r\n\r\n" + bytes(10**5)
    ),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_flood_costs_bounded_memory_and_the_others_are_served(server: Flooded, flood: Flood) -> None:
    with files(flood.connections) as number, ExitStack() as stack:
        await asyncio.to_thread(flood.begin, server.port, number, stack)

        assert median([await served_s(server.port) for _ in range(5)]) < 1
        assert server.grown_mb() < MOST_MB


async def served_s(port: int) -> float:
    """How long a request of another address takes."""
    began_s = time.monotonic()
    assert [reply.status for reply in all_parsed(await exchange(port, LAST, address=ELSEWHERE))] == [200]
    return time.monotonic() - began_s


BLOWS = {
    "a query of 1 MiB": (b"GET /?" + b"x" * 2**20 + b" HTTP/1.1\r\n\r\n", 414),
    "100 KiB of headers": (b"GET / HTTP/1.1\r\n" + (b"X: " + b"x" * 1000 + b"\r\n") * 100 + b"\r\n", 431),
    "1,000 requests at once": (ASK * 999 + LAST, 200),
    "a body of 1 MiB": (LAST[:-2] + b"Content-Length: 1048576\r\n\r\n" + bytes(2**20), 200),
    "a length that is too long": (LAST[:-2] + b"Content-Length: 99\r\n\r\nbody", 200),
    "a length that is none": (LAST[:-2] + b"Content-Length: x\r\n\r\nbody", 400),
    "a length, and chunks": (LAST[:-2] + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
}


@pytest.mark.parametrize(("raw", "status"), BLOWS.values(), ids=BLOWS)
async def test_a_hundred_times_leaves_nothing(server: Flooded, raw: bytes, status: int) -> None:
    before_mb = server.grown_mb()
    for _ in range(10):
        answers = await asyncio.gather(*(exchange(server.port, raw, address="127.4.1.1") for _ in range(10)))
        assert {reply.status for answer in answers for reply in all_parsed(answer)} == {status}

    assert await served_s(server.port) < 1
    assert server.grown_mb() < before_mb + 16

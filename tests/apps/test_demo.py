"""`podidentity demo`: it tells the tutorial's story, fails when something of it does not happen, and leaves nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.apps.daemons import Daemon, daemon, until

TOLD = (
    "azureidentity/demo-aad1 created",
    "azureidentitybinding/demo-azure-id-binding created",
    "Event Normal 'binding applied': Binding demo-azure-id-binding applied on node",
    "NAMESPACE   NAME",
    "status (200) took",
    "token of the pod's default identity: client ID",
    "token by client ID: client ID",
    "instance metadata: ",
    "virtual machines: 1 in ",
    "From the pod's creation to its first token: ",
    "Everything happened",
)


@asynccontextmanager
async def demo() -> AsyncIterator[tuple[Daemon, set[int]]]:
    """Run the demo; yields it and the set of all processes that it has ever started."""
    async with daemon("demo", "demo", module="apps.ctl") as running:
        family: set[int] = set()
        watching = asyncio.create_task(_watch(running.process.pid, family))
        try:
            yield running, family
        finally:
            watching.cancel()


async def _watch(pid: int, family: set[int]) -> None:
    while True:
        family |= descendants(pid)
        await asyncio.sleep(0.02)


def descendants(pid: int) -> set[int]:
    """Every process below *pid*."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def runs(pid: int, module: str) -> bool:
    """Whether *pid* is `python -m module`."""
    return module in Path(f"/proc/{pid}/cmdline").read_text()


def alive(family: set[int]) -> set[int]:
    """Those of *family* that still run."""
    return {pid for pid in family if Path(f"/proc/{pid}").exists()}


async def test_the_whole_story() -> None:
    async with demo() as (running, family):
        assert await running.exit_code() == 0

        missing = [text for text in TOLD if text not in running.output]
        assert missing == []
        assert "eyJ" not in running.output  # no token is printed
        assert len(family) >= 3  # MIC, NMI and the pod
        await until(lambda: not alive(family), f"an end of {alive(family)}")


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("MIC and NMI start", signal.SIGINT),
        ("MIC assigns", signal.SIGTERM),
        ("What the demo pod got", signal.SIGINT),
    ],
)
async def test_an_interruption_ends_everything(moment: str, number: signal.Signals) -> None:
    async with demo() as (running, family):
        await running.line(moment)

        assert await running.end(number) == 130

        assert "interrupted; everything has been stopped" in running.output
        assert "Traceback" not in running.output
        await until(lambda: not alive(family), f"an end of {alive(family)}")


async def test_a_part_that_does_not_happen_is_a_failure_that_says_which() -> None:
    async with demo() as (running, family):
        await running.line("An identity in Azure")
        (mic,) = (pid for pid in alive(family) if runs(pid, "apps.mic"))
        os.kill(mic, signal.SIGKILL)

        assert await running.exit_code() == 1

        assert "FAILED: mic ended; its last lines:" in running.output
        assert "Everything happened" not in running.output
        await until(lambda: not alive(family), f"an end of {alive(family)}")

"""Waiting for conditions, clocks that tests move, and a network that tests cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

PATIENCE_S = 15.0


async def until(condition: Callable[[], Any], *, patience_s: float = PATIENCE_S) -> None:
    """Return once *condition* holds; fail when it does not come true in time."""
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110  # what servers have seen sets no event
            await asyncio.sleep(0.005)


class SteppedClock:
    """A clock that stands still until a test sets *now_s*. Sleeping takes next to no time, and is recorded."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept_s: list[float] = []

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return 1_700_000_000.0 + self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        await asyncio.sleep(0.002)


class Relay:
    """A TCP relay to *port*, in the middle of which the wire can be held: a peer that is dead, and nobody is told."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._held = False
        self._gates: list[asyncio.Event] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Relay]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def hold(self, *, new_ones: bool = True) -> None:
        """From now on nothing comes through the existing connections, nor through new ones if these are meant, too."""
        self._held = new_ones
        for gate in self._gates:
            gate.clear()

    def cut(self) -> None:
        """End the existing connections."""
        for task in self._tasks:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        gate = asyncio.Event()
        if not self._held:
            gate.set()
        self._gates.append(gate)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(_pump(source, sink, gate))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, gate: asyncio.Event) -> None:
    try:
        while data := await source.read(65536):
            await gate.wait()
            sink.write(data)
            await sink.drain()
    except OSError:
        pass
    finally:
        with suppress(OSError):
            sink.close()


def server_port(kubeconfig: Path) -> int:
    """The port of the API server that *kubeconfig* names."""
    port: int | None = urlsplit(yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]).port
    assert port is not None
    return port


def kubeconfig_to(port: int, kubeconfig: Path, *, scheme: str = "") -> Path:
    """A copy of *kubeconfig* whose server is at another port."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    cluster["server"] = f"{scheme or urlsplit(cluster['server']).scheme}://127.0.0.1:{port}"
    copy = kubeconfig.with_name(f"kubeconfig-{port}")
    copy.write_text(yaml.safe_dump(config))
    return copy

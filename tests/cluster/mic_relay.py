"""A TCP relay on the loopback address that answers late, or cuts connections, when told to."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from random import Random

ADDRESS = "127.0.0.1"
CHUNK_BYTES = 2**16

Late = Callable[[float], float]
"""How long, in seconds, what the server says now (by the monotonic clock) is on its way; never overtaking."""


def on_time(_now_s: float) -> float:
    """Give no lateness at all."""
    return 0.0


class Relay:
    """Passes connections on to *target_port*. What is said by the server, and only that, is as late as *late* says."""

    def __init__(self, target_port: int) -> None:
        self.late: Late = on_time
        self.cuts = 0
        self._target_port = target_port
        self._open: dict[int, tuple[asyncio.WriteTransport, ...]] = {}
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()

    def cut_one(self, chance: Random) -> None:
        """End any one of the open connections at once, without a word."""
        self._loop.call_soon_threadsafe(self._cut_one, chance)

    def run(self, port: int, started: threading.Event) -> None:
        """Serve in this thread until `stop`, and then end all connections."""
        self._loop.run_until_complete(self._serve(port, started))
        self._loop.close()

    def stop(self) -> None:
        """End `run`, from another thread."""
        self._loop.call_soon_threadsafe(self._stopping.set)

    async def _serve(self, port: int, started: threading.Event) -> None:
        server = await asyncio.start_server(self._begin, ADDRESS, port)
        started.set()
        await self._stopping.wait()
        for listener in server.sockets:  # closing them would break what the loop has accepted but not begun
            self._loop.remove_reader(listener.fileno())
        for connection in self._open:
            self._cut(connection)
        # No task is cancelled: one that is already on its way out would leave its sockets open.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
        server.close()

    def _cut_one(self, chance: Random) -> None:
        if self._open:
            self.cuts += 1
            self._cut(chance.choice(list(self._open)))

    def _cut(self, connection: int) -> None:
        for transport in self._open[connection]:
            transport.abort()

    async def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await self._pass_on(reader, writer)
        await _end(writer)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(ADDRESS, self._target_port)
        self._open[id(writer)] = (writer.transport, there_writer.transport)
        if self._stopping.is_set():
            self._cut(id(writer))
        ways = (
            asyncio.create_task(_forward(reader, there_writer, lambda: on_time)),
            asyncio.create_task(_forward(there_reader, writer, lambda: self.late)),
        )
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        del self._open[id(writer)]
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        await _end(there_writer)


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, late: Callable[[], Late]) -> None:
    """Pass on what arrives, each piece at its time, until the end of it has been passed on."""
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    taking = asyncio.create_task(_take(reader, under_way, late))
    try:
        while True:
            due_s, piece = await under_way.get()
            await asyncio.sleep(due_s - time.monotonic())
            if not piece:
                return
            writer.write(piece)
            await writer.drain()
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)


async def _take(
    reader: asyncio.StreamReader, under_way: asyncio.Queue[tuple[float, bytes]], late: Callable[[], Late]
) -> None:
    piece = b"-"
    while piece:
        try:
            piece = await reader.read(CHUNK_BYTES)
        except OSError:
            piece = b""
        now_s = time.monotonic()
        under_way.put_nowait((now_s + late()(now_s), piece))


async def _end(writer: asyncio.StreamWriter) -> None:
    """End a connection at once, and return when its socket is closed."""
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


@contextmanager
def running_relay(port: int, target_port: int) -> Iterator[Relay]:
    """Start a relay from *port* to *target_port*, in a thread of its own."""
    relay, started = Relay(target_port), threading.Event()
    thread = threading.Thread(target=relay.run, args=(port, started), name=f"relay-{port}")
    thread.start()
    try:
        assert started.wait(10), f"no relay on port {port}"
        yield relay
    finally:
        relay.stop()
        thread.join()

"""Clients that ask a server as often as it answers. Run as a program: a job as a line of JSON, what came of it, ...

A program of its own, so that clients and server do not share an interpreter, and one for many jobs, so that short runs
of two servers can take turns.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass

_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Job:
    """What is asked: *target* for *seconds*, or, if *requests* is given, so many times in all.

    `{}` in the target becomes a number, another one with each request, from *number* on. Connections come from *pods*
    pods by turns, from every *step*th, beginning with *first_pod*. With *close* each request has a connection of its
    own.
    """

    port: int
    target: str
    connections: int
    close: bool = False
    seconds: float = 0.0
    requests: int = 0
    number: int = 0
    pods: int = 110
    first_pod: int = 0
    step: int = 1
    status: int = 200


@dataclass(frozen=True)
class Seen:
    """What the clients saw: answers, how many a second, the waits' median and 99th percentile."""

    requests: int
    per_s: float
    p50_ms: float
    p99_ms: float


def pod_address(number: int) -> str:
    """Return the address of pod *number*, counted from 0."""
    return f"127.1.{number // 250}.{number % 250 + 1}"


class _Clients:
    """The connections of one job, and how long each answer took."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._asked_s: dict[int, float] = {}
        self._begun: dict[int, bytes] = {}
        self._connected = 0
        self._number = job.number
        self._whole = -1  # the length of the last answer, which the next one will have, too
        self._status = b"HTTP/1.1 %d" % job.status
        self._request = self._request_for(job.target)
        self._numbered = "{}" in job.target
        self.waits: list[float] = []

    def connect(self) -> int:
        """Open a connection, from the next pod; returns its descriptor."""
        job = self._job
        address = pod_address(job.first_pod + self._connected * job.step % job.pods)
        self._connected += 1
        made = socket.create_connection(("127.0.0.1", job.port), source_address=(address, 0))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets[made.fileno()] = made
        self._poll.register(made, select.EPOLLIN)
        return made.fileno()

    def ask(self, number: int) -> None:
        """Send the next request on connection *number*."""
        if self._numbered:
            self._request = self._request_for(self._job.target.replace("{}", str(self._number)))
            self._number += 1
        self._asked_s[number] = time.perf_counter()
        self._sockets[number].sendall(self._request)

    def answered(self) -> list[int]:
        """Wait for bytes; return the connections with an answer. Raises RuntimeError for another status."""
        return [number for number, _ in self._poll.poll(1) if self._is_answered(number)]

    def close(self, number: int) -> None:
        """End a connection."""
        self._sockets.pop(number).close()

    def close_all(self) -> None:
        """End all connections."""
        for number in tuple(self._sockets):
            self.close(number)
        self._poll.close()

    def _is_answered(self, number: int) -> bool:
        data = self._sockets[number].recv(65536)
        if len(data) != self._whole or not data.startswith(self._status):
            data = self._begun.pop(number, b"") + data
            if not self._is_whole(data):
                self._begun[number] = data
                return False
            self._whole = len(data)
        self.waits.append(time.perf_counter() - self._asked_s[number])
        return True

    def _is_whole(self, data: bytes) -> bool:
        head, separator, body = data.partition(_HEAD_END)
        if not data or (separator and not data.startswith(self._status)):
            raise RuntimeError(f"not the expected answer: {data[:500].decode(errors='replace')}")
        return bool(separator) and len(body) >= int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])

    def _request_for(self, target: str) -> bytes:
        end = "Connection: close\r\n" if self._job.close else ""
        lines = f"GET {target} HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: python-requests/2.32.3\r\n"
        return f"{lines}Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nMetadata: true\r\n{end}\r\n".encode()


def run(job: Job) -> Seen:
    """Do *job*; every request that is sent is waited for."""
    clients = _Clients(job)
    try:
        connected = [clients.connect() for _ in range(job.connections)]
        began_s = time.perf_counter()
        for number in connected:
            clients.ask(number)
        asked = len(connected)
        while len(clients.waits) < asked:
            for number in clients.answered():
                more = asked < job.requests if job.requests else time.perf_counter() - began_s < job.seconds
                if job.close:
                    clients.close(number)
                if more:
                    clients.ask(clients.connect() if job.close else number)
                    asked += 1
        took_s = time.perf_counter() - began_s
    finally:
        clients.close_all()
    waits = sorted(clients.waits)
    return Seen(asked, asked / took_s, waits[asked // 2] * 1000, waits[asked * 99 // 100] * 1000)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(asdict(run(Job(**json.loads(line))))), flush=True)

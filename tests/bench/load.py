"""Clients that ask one question over and over, from one process: as many requests as the server answers.

Run as a program it prints what it saw as one line of JSON: `python -m tests.bench.load PORT PATH CONNECTIONS SECONDS
KIND`, where KIND is `keep-alive` or `close`.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

ADDRESSES = 110
_HEAD_END = b"\r\n\r\n"


class _Client:
    """One connection after another from one pod's address; `ask` sends, `answered` reads."""

    def __init__(self, port: int, request: bytes, address: str, *, close: bool) -> None:
        self._port = port
        self._request = request
        self._address = address
        self._close = close
        self._buffer = b""
        self.asked_s = 0.0
        self.socket = self._connected()

    def ask(self) -> None:
        self.asked_s = time.perf_counter()
        self.socket.sendall(self._request)

    def answered(self) -> bool:
        """Read what is there; True once the answer is whole. Raises RuntimeError for one that is not a 200."""
        self._buffer += self.socket.recv(65536)
        head, separator, body = self._buffer.partition(_HEAD_END)
        if not separator:
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(self._buffer.decode(errors="replace"))
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return False
        self._buffer = b""
        return True

    def renew(self, poll: select.epoll, clients: dict[int, _Client]) -> None:
        """Take a new connection, if each request has its own."""
        if not self._close:
            return
        del clients[self.socket.fileno()]
        self.socket.close()
        self.socket = self._connected()
        clients[self.socket.fileno()] = self
        poll.register(self.socket, select.EPOLLIN)

    def _connected(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self._port), source_address=(self._address, 0))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made


def run(port: int, path: str, connections: int, seconds: float, *, close: bool) -> dict[str, float]:
    """Ask for *seconds*; return requests a second, and the median and the 99th percentile of the waits in ms."""
    end = "Connection: close\r\n" if close else ""
    request = f"GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n{end}\r\n".encode()
    clients: dict[int, _Client] = {}
    poll = select.epoll()
    for number in range(connections):
        client = _Client(port, request, f"127.1.0.{number % ADDRESSES + 1}", close=close)
        clients[client.socket.fileno()] = client
        poll.register(client.socket, select.EPOLLIN)
        client.ask()
    waits: list[float] = []
    began_s = time.perf_counter()
    while (now_s := time.perf_counter()) - began_s < seconds:
        for number, _ in poll.poll(1):
            client = clients[number]
            if client.answered():
                waits.append(time.perf_counter() - client.asked_s)
                client.renew(poll, clients)
                client.ask()
    waits.sort()
    return {
        "requests": len(waits),
        "per_s": len(waits) / (now_s - began_s),
        "p50_ms": waits[len(waits) // 2] * 1000,
        "p99_ms": waits[len(waits) * 99 // 100] * 1000,
    }


if __name__ == "__main__":
    port_, path_, connections_, seconds_, kind_ = sys.argv[1:]
    print(json.dumps(run(int(port_), path_, int(connections_), float(seconds_), close=kind_ == "close")))

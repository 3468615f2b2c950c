"""What the kernel says about addresses: which are the node's own, and which interface leads to others."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import NamedTuple

from apps.nmi.netfilter.rules import Address
from podidentity_core.errors import TransientError

_UP, _REJECT = 0x1, 0x200


class Route(NamedTuple):
    """One route; of those that fit an address, the kernel takes the greatest."""

    prefix_length: int
    precedence: int
    interface: str
    network: IPv4Network


@dataclass(frozen=True, slots=True)
class Routing:
    """The node's own addresses, and its IPv4 routes."""

    own: frozenset[Address]
    routes: tuple[Route, ...] = ()

    def interface_towards(self, address: IPv4Address) -> str | None:
        """Return the interface with the most specific route to *address*.

        None when it is the node's own, and when only the default route leads there, which leads away from the node.
        """
        if address in self.own:
            return None
        fitting = [route for route in self.routes if route.prefix_length and address in route.network]
        return max(fitting).interface if fitting else None


def read_routing(proc: Path) -> Routing:
    """Read the tables of this network namespace. Raises `TransientError`."""
    try:
        return parsed(
            (proc / "net/route").read_text(), (proc / "net/fib_trie").read_text(), _read_if_there(proc / "net/if_inet6")
        )
    except OSError as error:
        raise TransientError(f"cannot read {error.filename}: {error.strerror}") from error


def parsed(route: str, fib_trie: str, if_inet6: str) -> Routing:
    """Return what the texts of the kernel's files of these names say. Pure."""
    own4 = map(IPv4Address, re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", fib_trie))
    own6 = (IPv6Address(bytes.fromhex(line.split()[0])) for line in if_inet6.splitlines())
    return Routing(frozenset((*own4, *own6)), tuple(_routes(route)))


def _routes(text: str) -> Iterator[Route]:
    for line in text.splitlines()[1:]:
        interface, destination, _gateway, flags, _references, _use, metric, mask = line.split()[:8]
        if int(flags, 16) & (_UP | _REJECT) == _UP:
            network = IPv4Network((_address(destination), str(_address(mask))))
            yield Route(network.prefixlen, -int(metric), interface, network)


def _address(digits: str) -> IPv4Address:
    # The file shows the bytes of an address as a number of the machine.
    return IPv4Address(int(digits, 16).to_bytes(4, sys.byteorder))


def _read_if_there(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:  # the kernel runs without IPv6
        return ""

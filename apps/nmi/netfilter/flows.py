"""Connections to the metadata service that bypass NMI, as conntrack selects and lists them. Pure.

The kernel asks the rules for the first packet of a connection only, so those that are older than the rules go on. Once
such a connection has been cut, the pod's next packet begins a new one, which meets the rules. But when the metadata
service's answer is what comes next, the kernel takes it for the beginning of a connection *to* the pod, and the pod's
packets for the replies: so both directions are looked for.

Those that NMI answers have another source in their replies: they are left alone, so that a restart cuts no request.
The node's own never meet the rules.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from apps.nmi.netfilter.rules import Address, Redirect


@dataclass(frozen=True, slots=True)
class Selection:
    """Connections of one direction: conntrack's arguments, and which of its arguments names the pod."""

    arguments: tuple[str, ...]
    pod_option: str


def bypassing(redirect: Redirect) -> tuple[Selection, ...]:
    """Return what selects the connections with the metadata service itself."""
    every = ("-f", f"ipv{redirect.family}", "-p", "tcp")
    metadata, port = redirect.metadata_ip, str(redirect.metadata_port)
    return (
        Selection((*every, "-d", metadata, "--dport", port, "--reply-src", metadata), "-s"),
        Selection((*every, "-s", metadata, "--sport", port), "-d"),
    )


def pods_in(listing: str, selection: Selection, own: Collection[Address]) -> tuple[Address, ...]:
    """Return the other ends of the listed connections, without the node's *own* addresses, each once."""
    side = 0 if selection.pod_option == "-s" else 1
    return tuple(sorted({ends[side] for ends in _ends(listing)} - set(own), key=str))


def _ends(listing: str) -> Iterator[tuple[Address, Address]]:
    for line in listing.splitlines():
        if found := re.search(r"\bsrc=(\S+) dst=(\S+)", line):  # the first pair is the first packet's
            yield ip_address(found[1]), ip_address(found[2])

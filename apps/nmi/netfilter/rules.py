"""What the nat table must hold for NMI, whether it does, and the transactions that make it so. Pure.

The chain and its text are the original's, since users compare them with `iptables -t nat -S`.
Source: aad-pod-identity pkg/nmi/iptables/iptables.go.

    listing of the table ──▶ verdict() ──▶ Intact
                                      └──▶ Damaged ──▶ installation() ──▶ one `iptables-restore --noflush`

The jump must be the first rule of PREROUTING, once and without conditions. A rule before it could take the packet, and
whether it does cannot be told without following every chain that it leads to. kube-proxy puts its own jump at the start
only when that is absent, so the two do not fight. A repair replaces everything in one transaction: at no moment does
the table lack rules that it had.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import pairwise

from podidentity_core.errors import ConfigurationError

Address = IPv4Address | IPv6Address

CHAIN = "aad-metadata"
_JUMP = f"-j {CHAIN}"


@dataclass(frozen=True, slots=True)
class Redirect:
    """From the metadata address to NMI's, both IPv4 or both IPv6.

    Azure's metadata service has an IPv4 address only; others, and tests, may have an IPv6 one. Raises
    `ConfigurationError` for what no rule can be written from.
    """

    metadata_ip: str
    metadata_port: int
    target_ip: str
    target_port: int

    def __post_init__(self) -> None:
        metadata = _address("metadata-ip", self.metadata_ip)
        target = _address("nmi-listen-address", self.target_ip)
        _check_port("metadata-port", self.metadata_port)
        _check_port("nmi-port", self.target_port)
        if metadata.version != target.version:
            raise ConfigurationError(
                f"--nmi-listen-address: {target} cannot answer for --metadata-ip={metadata}, which is of the other"
                f" family: give an IPv{metadata.version} address of this node"
            )
        if target.version == 6 and (target.is_unspecified or target.is_loopback or target.is_link_local):
            # IPv4 has route_localnet to let packets from outside go to loopback; IPv6 has nothing like it.
            raise ConfigurationError(
                f"--nmi-listen-address: requests of pods cannot be redirected to {target}: give an IPv6 address of this"
                " node that is neither loopback nor link-local"
            )

    @property
    def family(self) -> int:
        """4 or 6: the version of IP."""
        return ip_address(self.metadata_ip).version

    @property
    def source(self) -> str:
        """What is caught, as address:port."""
        return _socket(ip_address(self.metadata_ip), self.metadata_port)

    @property
    def destination(self) -> str:
        """Where the packets go, as address:port: the target, or loopback when NMI listens on every address.

        Source: aad-pod-identity pkg/nmi/server/server.go:135.
        """
        return _socket(self._destination_ip, self.target_port)

    @property
    def to_loopback(self) -> bool:
        """Whether the kernel must allow packets from outside to go to a loopback address."""
        return self._destination_ip.is_loopback

    @property
    def _destination_ip(self) -> Address:
        target = ip_address(self.target_ip)
        return IPv4Address("127.0.0.1") if target.is_unspecified else target


def _socket(ip: Address, port: int) -> str:
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"


def _address(flag: str, value: str) -> Address:
    try:
        address = ip_address(value)
    except ValueError as error:
        raise ConfigurationError(f"--{flag}: {value!r} is not an IP address, as in 169.254.169.254") from error
    if address.version == 6 and (address.scope_id or address.ipv4_mapped):
        plain = address.ipv4_mapped or value.partition("%")[0]
        raise ConfigurationError(f"--{flag}: no rule can be written for {value}: write {plain}")
    return address


def _check_port(flag: str, value: int) -> None:
    if not 0 < value < 65536:
        raise ConfigurationError(f"--{flag}: {value} is not a port, which is a number from 1 to 65535")


@dataclass(frozen=True, slots=True)
class Intact:
    """The table holds what it must."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """The table differs from what it must hold; *why* is the first difference, as a clause."""

    why: str


def verdict(saved: str, redirect: Redirect) -> Intact | Damaged:
    """Compare a listing of table nat, in the form of `iptables -S` or `iptables-save`, with what *redirect* needs.

    Content, order, duplicates and place count. How a program writes an address, or in which order the matches of one
    rule, does not: otherwise a different iptables version would mean a repair in each round.
    """
    if not _chain_exists(saved):
        return Damaged(f"chain {CHAIN} is absent")
    why = _chain_damage(_rules(saved, CHAIN), _wanted(redirect)) or _jump_damage(_rules(saved, "PREROUTING"))
    return Damaged(why) if why else Intact()


def installation(saved: str, redirect: Redirect) -> str:
    """Return the input for `iptables-restore --noflush` that brings the table of the listing into order.

    It drops each jump that PREROUTING has, wherever it is, and fails as a whole when one has gone in the meantime.
    """
    return _transaction(
        f":{CHAIN} - [0:0]",  # creates the chain or empties it
        *(f"-A {CHAIN} {rule}" for rule in _wanted(redirect)),
        *_without_jumps(saved),
        f"-I PREROUTING 1 {_JUMP}",
    )


def removals(saved: str) -> tuple[str, ...]:
    """Return the transactions that take everything of ours out, in order; none when nothing is there.

    The chain itself goes last and alone: the kernel keeps it when somebody else's rule refers to it, and that must not
    leave the interception in force.
    """
    jumps = _without_jumps(saved)
    if not jumps and not _chain_exists(saved):
        return ()
    return _transaction(f":{CHAIN} - [0:0]", *jumps), _transaction(f"-X {CHAIN}")


def _wanted(redirect: Redirect) -> tuple[str, str]:
    own, whole = ("127.0.0.1", 32) if redirect.family == 4 else ("::1", 128)
    metadata = ip_address(redirect.metadata_ip)
    caught = f"! -s {own}/{whole} -d {metadata}/{whole} -p tcp -m tcp --dport {redirect.metadata_port}"
    return f"{caught} -j DNAT --to-destination {redirect.destination}", "-j RETURN"


def _transaction(*lines: str) -> str:
    return "\n".join(("*nat", *lines, "COMMIT", ""))


def _chain_exists(saved: str) -> bool:
    return any(line == f"-N {CHAIN}" or line.startswith(f":{CHAIN} ") for line in saved.splitlines())


def _rules(saved: str, chain: str) -> list[str]:
    start = f"-A {chain} "
    return [line.removeprefix(start).strip() for line in saved.splitlines() if line.startswith(start)]


def _without_jumps(saved: str) -> list[str]:
    return [f"-D PREROUTING {rule}" for rule in _rules(saved, "PREROUTING") if _leads_to_us(rule)]


def _chain_damage(found: Sequence[str], wanted: Sequence[str]) -> str:
    for place, (rule, expected) in enumerate(zip(found, wanted, strict=False), start=1):
        if _meaning(rule) != _meaning(expected):
            return f"rule {place} of chain {CHAIN} is {rule!r} instead of {expected!r}"
    if len(found) != len(wanted):
        return f"chain {CHAIN} has {len(found)} rules instead of {len(wanted)}"
    return ""


def _jump_damage(prerouting: Sequence[str]) -> str:
    places = [place for place, rule in enumerate(prerouting, start=1) if _leads_to_us(rule)]
    if not places:
        return f"PREROUTING does not jump to {CHAIN}"
    if len(places) > 1:
        return f"PREROUTING jumps to {CHAIN} {len(places)} times"
    if places != [1]:
        return f"the jump to {CHAIN} is rule {places[0]} of PREROUTING instead of the first"
    if _meaning(prerouting[0]) != _meaning(_JUMP):
        return f"the jump to {CHAIN} has conditions: {prerouting[0]!r}"
    return ""


def _leads_to_us(rule: str) -> bool:
    words = _words(rule)
    return any(pair in (("-j", CHAIN), ("-g", CHAIN)) for pair in pairwise(words))


def _words(rule: str) -> list[str]:
    try:
        return shlex.split(rule)
    except ValueError:  # a quote that is never closed: not written by iptables, so compare it as it is
        return rule.split()


def _meaning(rule: str) -> frozenset[tuple[str, ...]]:
    """Return the parts of a rule, each option with its values, regardless of order and of how it is written."""
    parts: list[tuple[str, ...]] = []
    for word in _words(rule):
        if word == "!" or (word.startswith("-") and (not parts or parts[-1] != ("!",))):
            parts.append((word,))
        else:
            parts[-1:] = [(*(parts[-1] if parts else ()), _canonical(word))]
    # The protocol's own match is implied by the options that need it; some versions print it, some do not.
    return frozenset(part for part in parts if part != ("-m", "tcp"))


def _canonical(word: str) -> str:
    address, _, port = word.removeprefix("[").partition("]")  # an IPv6 address with a port has brackets
    try:
        return f"{ip_network(address)}{port}"
    except ValueError:
        return word

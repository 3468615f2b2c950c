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
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise

from podidentity_core.errors import ConfigurationError

CHAIN = "aad-metadata"
_JUMP = f"-j {CHAIN}"


@dataclass(frozen=True, slots=True)
class Redirect:
    """From the metadata address to NMI's. Raises `ConfigurationError` for what no rule can be written from."""

    metadata_ip: str
    metadata_port: int
    target_ip: str
    target_port: int

    def __post_init__(self) -> None:
        _check_address("metadata-ip", self.metadata_ip)
        _check_address("nmi-listen-address", self.target_ip)
        _check_port("metadata-port", self.metadata_port)
        _check_port("nmi-port", self.target_port)

    @property
    def destination_ip(self) -> str:
        """Where the packets go: the target, or loopback when NMI listens on every address.

        Source: aad-pod-identity pkg/nmi/server/server.go:135.
        """
        return "127.0.0.1" if IPv4Address(self.target_ip).is_unspecified else self.target_ip

    @property
    def to_loopback(self) -> bool:
        """Whether the kernel must allow packets from outside to go to a loopback address."""
        return IPv4Address(self.destination_ip).is_loopback


def _check_address(flag: str, value: str) -> None:
    try:
        IPv4Address(value)
    except ValueError as error:
        raise ConfigurationError(f"--{flag}: {value!r} is not an IPv4 address, as in 169.254.169.254") from error


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
    caught = f"! -s 127.0.0.1/32 -d {redirect.metadata_ip}/32 -p tcp -m tcp --dport {redirect.metadata_port}"
    return f"{caught} -j DNAT --to-destination {redirect.destination_ip}:{redirect.target_port}", "-j RETURN"


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
    try:
        return str(IPv4Network(word))
    except ValueError:
        return word

"""The kernel setting `route_localnet`: without it, packets that are redirected to loopback vanish silently.

The kernel lets a packet from an interface through when `all` or the interface itself has the setting. kube-proxy sets
`all` in its iptables mode; in other modes, or without kube-proxy, nobody does.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path

from apps.nmi.netfilter.routing import read_routing
from podidentity_core.errors import RefusedError

logger = logging.getLogger(__name__)

_SHOWN = 3
"""How many interfaces a message names: some networks have one for each pod."""


def ensure_route_localnet(pod_addresses: Collection[str], proc: Path) -> None:
    """Make sure that pods' packets may be redirected to loopback.

    Sets `all` where that is permitted; a container sees it read-only unless it is privileged. Then the interfaces that
    lead to the pods must have the setting: one bridge, or one interface per pod. While no pod is known, any interface
    that has it is taken for a choice that somebody made for pods.

    Raises:
        RefusedError: pods would get no answer; says by which interfaces, and the remedy.
        TransientError: the kernel's tables cannot be read.
    """
    conf = proc / "sys/net/ipv4/conf"  # one folder per interface, and `all` and `default`
    every = conf / "all" / "route_localnet"
    if _is_on(every):
        return
    try:
        every.write_text("1\n")
    except OSError as error:
        lacking = _lacking(conf, _interfaces_of(pod_addresses, proc))
        if lacking:
            raise RefusedError(
                f"net.ipv4.conf.all.route_localnet is 0, also for {lacking}, and cannot be set from here"
                f" ({error.strerror or error}), so requests of pods would time out;"
                " on the node, run: sysctl -w net.ipv4.conf.all.route_localnet=1"
            ) from error
    else:
        logger.info("net.ipv4.conf.all.route_localnet was 0, set it to 1")


def _interfaces_of(pod_addresses: Collection[str], proc: Path) -> list[str]:
    """Return the interfaces by which these pods come in; pods in the node's own network have none."""
    if not pod_addresses:
        return []
    routing = read_routing(proc)
    found = {routing.interface_towards(address) for address in _ipv4(pod_addresses)}
    return sorted(name for name in found if name is not None)


def _ipv4(addresses: Collection[str]) -> Iterator[IPv4Address]:
    for address in addresses:
        with suppress(ValueError):  # an IPv6 address, or none at all
            yield IPv4Address(address)


def _lacking(conf: Path, interfaces: list[str]) -> str:
    """Return in words which of *interfaces* lack the setting, or "". Without any, one of the node's must have it."""
    if not interfaces:
        settings = (s for s in conf.glob("*/route_localnet") if s.parent.name not in ("all", "default", "lo"))
        return "" if any(map(_is_on, settings)) else "every interface"
    without = [name for name in interfaces if not _is_on(conf / name / "route_localnet")]
    others = f" and {len(without) - _SHOWN} others" if len(without) > _SHOWN else ""
    return ", ".join(without[:_SHOWN]) + others


def _is_on(setting: Path) -> bool:
    try:
        return setting.read_text().strip() == "1"
    except OSError:  # the interface went away between listing and reading, or there is no IPv4
        return False

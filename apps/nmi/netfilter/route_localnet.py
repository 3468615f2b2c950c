"""The kernel setting `route_localnet`: without it, packets that are redirected to loopback vanish silently.

The kernel lets a packet from an interface through when `all` or the interface itself has the setting. kube-proxy sets
`all` in its iptables mode; in other modes, or without kube-proxy, nobody does.
"""

from __future__ import annotations

import logging
from pathlib import Path

from podidentity_core.errors import RefusedError

logger = logging.getLogger(__name__)

CONF = Path("/proc/sys/net/ipv4/conf")
"""One directory per network interface, and `all` and `default`."""


def ensure_route_localnet(conf: Path = CONF) -> None:
    """Make sure that pods' packets may be redirected to loopback, or raise `RefusedError` with the remedy.

    Sets `all` where that is permitted; a container sees it read-only unless it is privileged. Then interfaces that
    have the setting are taken for a choice that somebody made for the interfaces of the pods.
    """
    every = conf / "all" / "route_localnet"
    if _is_on(every):
        return
    try:
        every.write_text("1\n")
    except OSError as error:
        if not _interfaces_with_it(conf):
            raise RefusedError(
                "net.ipv4.conf.all.route_localnet is 0 and cannot be set from here"
                f" ({error.strerror or error}), so requests of pods would time out;"
                " on the node, run: sysctl -w net.ipv4.conf.all.route_localnet=1"
            ) from error
    else:
        logger.info("net.ipv4.conf.all.route_localnet was 0, set it to 1")


def _interfaces_with_it(conf: Path) -> list[str]:
    settings = conf.glob("*/route_localnet")
    return sorted(s.parent.name for s in settings if s.parent.name not in ("all", "default", "lo") and _is_on(s))


def _is_on(setting: Path) -> bool:
    try:
        return setting.read_text().strip() == "1"
    except OSError:  # the interface went away between listing and reading, or there is no IPv4
        return False

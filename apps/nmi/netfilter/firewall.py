"""The node's iptables and conntrack, through the programs of those names.

There are two back ends in the kernel, and rules belong where kube-proxy and the kubelet keep theirs. Their programs are
`iptables-nft` and `iptables-legacy`; plain `iptables` is one of the two, as the image's maker chose. For IPv6 there is
another set of tables, and `ip6tables` with its two back ends.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from apps.nmi.netfilter.command import Finished, run
from apps.nmi.netfilter.flows import bypassing, pods_in
from apps.nmi.netfilter.route_localnet import ensure_route_localnet
from apps.nmi.netfilter.routing import read_routing
from apps.nmi.netfilter.rules import CHAIN, Redirect
from podidentity_core.errors import PermissionRefused, PodIdentityError, TransientError

if TYPE_CHECKING:
    from apps.nmi.netfilter.interceptor import Firewall

logger = logging.getLogger(__name__)

_LOCK_WAIT_S = 5
"""How long iptables itself waits for the lock that its legacy back end shares with kube-proxy."""

_NO_SUCH_CHAIN = 1
"""Exit status of `iptables -S CHAIN` without that chain; no permission is 3 or 4, a held lock 4."""


class Iptables:
    """The nat table of this network namespace. Every method may raise a `PodIdentityError` that says what failed."""

    def __init__(self, family: int, *, deadline_s: float = 2 * _LOCK_WAIT_S, proc: Path = Path("/proc")) -> None:
        """*family* is 4 or 6. *deadline_s* bounds each program's run; it must leave room for the wait for the lock."""
        self._plain = "iptables" if family == 4 else "ip6tables"
        self._deadline_s = deadline_s
        self._proc = proc
        self._program: str | None = None  # found out at first use, and again after a failure

    async def listing(self) -> str:
        """Return the rules of PREROUTING and of our chain, as `iptables -S` prints them.

        Only these two: a whole `iptables-save` costs more than a second of CPU where kube-proxy has 40,000 rules.
        """
        prerouting = await self._iptables("-S", "PREROUTING")
        ours = await self._iptables("-S", CHAIN, accept=(0, _NO_SUCH_CHAIN))
        return prerouting.out + (ours.out if ours.status == 0 else "")

    async def restore(self, transaction: str) -> None:
        """Apply *transaction* whole or not at all, leaving all else in the table as it is."""
        program = await self._chosen()
        await self._checked(f"{program}-restore", "-w", str(_LOCK_WAIT_S), "--noflush", stdin=transaction)

    async def forget_flows(self, redirect: Redirect) -> int:
        """Cut connections of pods to the metadata address that bypass the redirect; return how many pods had some.

        See `flows` for which these are.
        """
        own = read_routing(self._proc).own
        cut = 0
        for selection in bypassing(redirect):
            listed = await self._conntrack("-L", *selection.arguments)
            for pod in pods_in(listed.out, selection, own):
                await self._conntrack("-D", *selection.arguments, selection.pod_option, str(pod))
                cut += 1
        return cut

    async def _conntrack(self, *arguments: str) -> Finished:
        finished = await run("conntrack", *arguments, deadline_s=self._deadline_s)
        # With nothing to delete, conntrack prints this and exits with 1, as it does for every failure.
        if finished.status != 0 and "0 flow entries" not in finished.err:
            raise _failure(finished)
        return finished

    def ensure_route_localnet(self, pod_addresses: Collection[str]) -> None:
        """See `route_localnet.ensure_route_localnet`."""
        ensure_route_localnet(pod_addresses, self._proc)

    async def _iptables(self, *arguments: str, accept: tuple[int, ...] = (0,)) -> Finished:
        program = await self._chosen()
        return await self._checked(program, "-w", str(_LOCK_WAIT_S), "-t", "nat", *arguments, accept=accept)

    async def _checked(self, *command: str, stdin: str = "", accept: tuple[int, ...] = (0,)) -> Finished:
        try:
            finished = await run(*command, stdin=stdin, deadline_s=self._deadline_s)
            if finished.status not in accept:
                raise _failure(finished)
        except PodIdentityError:
            self._program = None
            raise
        return finished

    async def _chosen(self) -> str:
        if self._program is None:
            self._program = await self._detected()
            logger.info("using %s", self._program)
        return self._program

    async def _detected(self) -> str:
        # kubelet and kube-proxy each keep a chain in table mangle, which is small. The legacy program must not name a
        # table, since that would create it; without a name it saves those that exist.
        if await self._has_kube_chains(f"{self._plain}-nft-save", "-t", "mangle"):
            return f"{self._plain}-nft"
        if await self._has_kube_chains(f"{self._plain}-legacy-save"):
            return f"{self._plain}-legacy"
        return self._plain

    async def _has_kube_chains(self, *command: str) -> bool:
        try:
            finished = await run(*command, deadline_s=self._deadline_s)
        except PodIdentityError as error:
            logger.debug("cannot look for Kubernetes chains: %s", error)
            return False
        return any(line.startswith(":KUBE-") for line in finished.out.splitlines())


def _failure(finished: Finished) -> PodIdentityError:
    """Return the error for a program that has failed, with its own words and what to do."""
    complaint = f"{finished.name}: {finished.complaint}"
    if "xtables lock" in finished.err:
        return TransientError(f"another program holds the xtables lock (waited {_LOCK_WAIT_S} s): {complaint}")
    if any(sign in finished.err for sign in ("Permission denied", "not permitted", "must be root")):
        return PermissionRefused(
            f"no permission to change the firewall; NMI needs root, NET_ADMIN and NET_RAW: {complaint}"
        )
    return TransientError(f"{complaint} (exit status {finished.status})")


if TYPE_CHECKING:
    _: type[Firewall] = Iptables

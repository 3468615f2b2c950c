"""When the rules are written, looked at, repaired and removed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from apps.nmi.netfilter.rules import Damaged, Redirect, installation, removals, verdict
from podidentity_core.errors import ConfigurationError, PodIdentityError, TransientError
from podidentity_core.ports import Clock

logger = logging.getLogger(__name__)

_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 30.0


class Firewall(Protocol):
    """The nat table of the node and what goes with it, for one address family.

    Every method may raise a `PodIdentityError`; then nothing has changed, and repeating the call is harmless.
    """

    async def listing(self) -> str:
        """Return at least the rules of PREROUTING and of our chain, as iptables prints them."""
        ...

    async def restore(self, transaction: str) -> None:
        """Apply a transaction in the form of `iptables-restore --noflush`, whole or not at all."""
        ...

    async def forget_flows(self, redirect: Redirect) -> int:
        """Cut pods' connections to the metadata address that bypass the redirect; return how many pods had some."""
        ...

    def ensure_route_localnet(self, pod_addresses: Collection[str]) -> None:
        """Make sure that the kernel accepts packets of these pods, if any are known, for a loopback address."""
        ...


@dataclass(frozen=True, slots=True)
class Interception:
    """What to keep in place, how often to look, and whether to cut connections that are older than the rules."""

    redirect: Redirect
    interval_s: float = 60.0
    forget_flows: bool = False

    def __post_init__(self) -> None:
        if self.interval_s <= 0:
            raise ConfigurationError(
                f"--ipt-update-interval-sec: {self.interval_s:g} is not an interval, which is 1 or more"
            )


class Interceptor:
    """Keeps pods' requests for the metadata address coming to NMI. Start it once NMI listens, and not before.

    An error never leaves `run`: the rules that are in place stay, `ready` becomes false, `reason` says why, and the
    next attempt comes soon. Source of rules and rounds: aad-pod-identity pkg/nmi/server/server.go:134.
    """

    def __init__(
        self,
        interception: Interception,
        firewall: Firewall,
        clock: Clock,
        random: Callable[[], float],
        pod_addresses: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """*random* returns a number from 0 up to 1; it spreads the retries of many nodes.

        *pod_addresses* returns those of the node's pods that are known; the node's own address may be among them.
        """
        self._interception = interception
        self._firewall = firewall
        self._clock = clock
        self._random = random
        self._pod_addresses = pod_addresses
        self._reason = "the iptables rules have not been checked yet"

    @property
    def ready(self) -> bool:
        """Whether the last look found, or made, everything in order."""
        return not self._reason

    @property
    def reason(self) -> str:
        """Why it is not ready; empty when it is."""
        return self._reason

    async def run(self) -> None:
        """Install, then look at each interval and repair; until cancelled."""
        in_a_row = 0  # looks after which the next one comes soon
        while True:
            try:
                cut = await self._look()
            except PodIdentityError as error:
                in_a_row += 1
                delay_s = self._soon_s(in_a_row)
                self._reason = str(error) or repr(error)
                logger.error("interception is not in order, next attempt in %.1f s: %s", delay_s, error)
            else:
                in_a_row = in_a_row + 1 if cut else 0  # a connection may need more than one cut, see `flows`
                delay_s = self._soon_s(in_a_row) if cut else self._interception.interval_s
                self._become_ready()
            await self._clock.sleep(delay_s)

    async def remove(self) -> None:
        """Take jump and chain out again, as the original does when it exits. Call it when `run` has ended.

        From then on pods reach the real metadata service. Raises a `PodIdentityError` when that fails.
        """
        self._reason = "the iptables rules have been removed"
        for transaction in removals(await self._firewall.listing()):
            await self._firewall.restore(transaction)

    async def _look(self) -> int:
        """Bring everything into order; return how many pods had connections that bypassed NMI, which are cut now."""
        redirect = self._interception.redirect
        saved = await self._firewall.listing()
        match verdict(saved, redirect):
            case Damaged(why):
                await self._repair(saved, why)
        cut = await self._firewall.forget_flows(redirect) if self._interception.forget_flows else 0
        if cut:
            logger.warning(
                "deleting conntrack entries for %s: connections of %d pods bypassed NMI", redirect.source, cut
            )
        # Last, because without it pods get no answer, while without the rules they would get the node's identities.
        if redirect.to_loopback:
            self._firewall.ensure_route_localnet(self._pod_addresses())
        return cut

    async def _repair(self, saved: str, why: str) -> None:
        redirect = self._interception.redirect
        logger.warning("flushing iptables to add aad-metadata custom chains: %s", why)
        await self._firewall.restore(installation(saved, redirect))
        match verdict(await self._firewall.listing(), redirect):
            case Damaged(still):
                raise TransientError(f"the iptables rules were written but are not in order: {still}")

    def _become_ready(self) -> None:
        if self._reason:
            redirect = self._interception.redirect
            logger.info("interception is in order: %s goes to %s", redirect.source, redirect.destination)
        self._reason = ""

    def _soon_s(self, in_a_row: int) -> float:
        ceiling_s = min(_FIRST_RETRY_S * 2.0 ** min(in_a_row - 1, 10), _LONGEST_RETRY_S, self._interception.interval_s)
        return ceiling_s * (0.5 + self._random() / 2)

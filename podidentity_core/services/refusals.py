"""Identities that a host refuses: set aside for a while, longer each time, and found where Azure does not name them.

Source: aad-pod-identity pkg/cloudprovider/cloudprovider.go:211, which knew only those that the error named, and asked
again in every cycle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass

from podidentity_core.ports import Clock
from podidentity_core.resource_ids import IdentityResource
from podidentity_core.services.work_queue import Backoff
from podidentity_core.settling import HostChange


@dataclass(slots=True)
class _Refusal:
    until_s: float
    count: int
    why: str


class Refusals:
    """The identities that one host has refused, and until when they are not asked for again."""

    def __init__(self, backoff: Backoff, clock: Clock, chance: Callable[[], float]) -> None:
        self._backoff = backoff
        self._clock = clock
        self._chance = chance
        self._refusals: dict[IdentityResource, _Refusal] = {}

    def __len__(self) -> int:
        """How many are known, whether or not their time has come."""
        return len(self._refusals)

    def at(self, now_s: float) -> Set[IdentityResource]:
        """Those whose time had not come by *now_s*, in monotonic seconds."""
        return {resource for resource, refusal in self._refusals.items() if refusal.until_s > now_s}

    def ends_s(self) -> list[float]:
        """When each may be tried again, in monotonic seconds."""
        return [refusal.until_s for refusal in self._refusals.values()]

    def why(self, resource: IdentityResource) -> str:
        """What Azure said about *resource*; empty if it is not known to be refused."""
        refusal = self._refusals.get(resource)
        return refusal.why if refusal else ""

    def add(self, resources: Iterable[IdentityResource], why: str) -> None:
        """Set *resources* aside; those of one call wait equally long if they have been refused equally often."""
        now_s, chance = self._clock.monotonic_s(), self._chance()
        for resource in resources:
            count = self._refusals[resource].count + 1 if resource in self._refusals else 1
            self._refusals[resource] = _Refusal(now_s + self._backoff.delay_s(count, chance), count, why)

    def forget(self, resources: Iterable[IdentityResource]) -> bool:
        """Let *resources* count as never refused; returns whether any was."""
        known = self._refusals.keys() & set(resources)
        for resource in known:
            del self._refusals[resource]
        return bool(known)

    def keep(self, matters: Set[IdentityResource], decided_s: float) -> None:
        """Forget all but those that matter and whose time had not come when it was decided what to write.

        One whose time had come was tried, and if that was not necessary it never will be.
        """
        waiting = self.at(decided_s) & matters
        self._refusals = {resource: refusal for resource, refusal in self._refusals.items() if resource in waiting}


class Halving:
    """Finds the identity because of which a host refuses a write, in one round: ever smaller parts are written.

    When two have been refused alone and nothing was accepted, the host refuses everything, and all are to blame.
    """

    def __init__(self) -> None:
        self._most = 0
        self._alone = 0
        self._accepted = False

    def part(self, wanted: HostChange) -> HostChange:
        """As much of *wanted* as may be written now, additions first."""
        if not self._most:
            return wanted
        add = sorted(wanted.add, key=lambda resource: resource.key)[: self._most]
        remove = sorted(wanted.remove, key=lambda resource: resource.key)[: self._most - len(add)]
        return HostChange(frozenset(add), frozenset(remove))

    def accept(self) -> None:
        """Take note that a part was accepted."""
        self._accepted = True

    def blame(self, refused: HostChange, wanted: HostChange) -> frozenset[IdentityResource]:
        """Take note that *refused*, a part of *wanted*, was refused; returns who is to blame, if that is known now."""
        size = len(refused.add) + len(refused.remove)
        if size > 1:
            self._most = 1 if self._alone and not self._accepted else size // 2
            return frozenset()
        self._most = 0
        self._alone += 1
        if self._alone > 1 and not self._accepted:
            return wanted.add | wanted.remove
        return refused.add | refused.remove

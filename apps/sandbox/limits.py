"""Azure's request budgets as token buckets: counted always, enforced if asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

PER_MINUTE: Mapping[str, tuple[int, float]] = {
    "UpdateVMResource": (12, 4),
    "UpdateVMSubscriptionMaximum": (1500, 500),
    "VMScaleSetActionsResource": (12, 4),
    "VMScaleSetActionsSubscriptionMaximum": (1500, 500),
    "LowCostGetResource": (36, 12),
    "LowCostGetSubscriptionMaximum": (24_000, 8_000),
    "GetVMScaleSetResource": (36, 12),
    "GetVMScaleSetSubscriptionMaximum": (2400, 800),
    "GetOperationResource": (45, 15),
    "GetOperationSubscriptionMaximum": (15_000, 5_000),
    "subscription-reads": (250, 25 * 60),
    "subscription-global-reads": (3750, 375 * 60),
    "subscription-writes": (200, 10 * 60),
    "subscription-global-writes": (3000, 150 * 60),
    "identity": (20, 20 * 60),
}
"""Size of each bucket and its refill a minute."""

COST: Mapping[str, int] = {"UpdateVMResource": 2, "UpdateVMSubscriptionMaximum": 2}
"""What a call takes of a bucket, if it is more than one token: recorded answers to a PATCH of a VM leave 10 of 12."""


@dataclass(slots=True)
class Limits:
    """The buckets of one server, made when first used; *now* gives monotonic seconds."""

    enforced: bool
    now: Callable[[], float]
    _levels: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def take(self, bucket: str, owner: str) -> tuple[int, int]:
        """Take a call's tokens; return how many are left and, if it is refused, the whole seconds to wait (else 0)."""
        size, refill = PER_MINUTE[bucket]
        cost, now = COST.get(bucket, 1), self.now()
        level, since = self._levels.get((bucket, owner), (float(size), now))
        level = min(size, level + (now - since) * refill / 60)
        if level < cost and self.enforced:
            self._levels[bucket, owner] = (level, now)
            return 0, math.ceil((cost - level) * 60 / refill)
        self._levels[bucket, owner] = (max(0.0, level - cost), now)
        return int(max(0.0, level - cost)), 0

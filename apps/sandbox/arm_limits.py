"""How Resource Manager and its compute provider count requests, say what is left, and refuse what is too much."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from apps.sandbox.identity_rules import ArmError
from apps.sandbox.limits import Limits

_ALSO_TOLD: Mapping[str, str] = {
    "VMScaleSetActions": (
        "Microsoft.Compute/VMScaleSetBatchedVMRequestsSubscriptionMaximum;6000,Microsoft.Compute/VmssQueuedVMOperations;0"
    )
}
"""What else the real one says beside the limits of a group. The last is no limit, though it has nothing left."""


class TooManyRequests(ArmError):
    """A 429 of the compute provider: without the outer `error`, and with the limit in its details."""

    def __init__(self, limit: str, wait_s: int) -> None:
        why = "The server rejected the request because too many requests have been received for this subscription."
        super().__init__(429, "OperationNotAllowed", why, {"retry-after": str(wait_s)})
        self._limit = limit

    @property
    def body(self) -> dict[str, Any]:
        """Return the error as the compute provider writes it."""
        detail = {
            "code": "TooManyRequests",
            "target": self._limit,
            "message": json.dumps({"operationGroup": self._limit}, separators=(",", ":")),
        }
        return {"code": self.code, "message": str(self), "details": [detail]}


def count_at_arm(limits: Limits, headers: dict[str, str], *, reads: bool, subscription: str, caller: str) -> None:
    """Count a request at Resource Manager, for the caller and for all callers; note in *headers* what is left.

    Raises ArmError (429).
    """
    what = "reads" if reads else "writes"
    for scope, owner in (("subscription", caller), ("subscription-global", "all")):
        left, wait_s = limits.take(f"{scope}-{what}", f"{subscription}/{owner}".lower())
        headers[f"x-ms-ratelimit-remaining-{scope}-{what}"] = str(left)
        if wait_s:
            told = (
                f"Number of '{what[:-1]}' requests for subscription '{subscription}' actor "
                f"'{caller}' exceeded. Please try again after '{wait_s}' seconds."
            )
            raise ArmError(429, "SubscriptionRequestsThrottled", told, {"retry-after": str(wait_s)})


def count_at_compute(limits: Limits, headers: dict[str, str], group: str, *, subscription: str, host_id: str) -> None:
    """Count a request of an operation *group* at the compute provider; note in *headers* what is left.

    Raises TooManyRequests.
    """
    told = []
    for scope, owner in (("SubscriptionMaximum", subscription), ("Resource", host_id)):
        left, wait_s = limits.take(f"{group}{scope}", owner.lower())
        told.append(f"Microsoft.Compute/{group}{scope};{left}")
        headers["x-ms-ratelimit-remaining-resource"] = ",".join(told)
        if wait_s:
            raise TooManyRequests(f"{group}{scope}", wait_s)
    if group in _ALSO_TOLD:
        headers["x-ms-ratelimit-remaining-resource"] += f",{_ALSO_TOLD[group]}"

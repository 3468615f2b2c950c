"""What Azure lets us ask: budgets of calls for each host and each subscription, and what is left of them.

Azure counts with token buckets: so many calls at once, then so many new ones a minute.

| call                    | per host        | per subscription, compute | ... Resource Manager |
|-------------------------|-----------------|---------------------------|----------------------|
| read of a VM            | 36, 12 a minute | 24000, 8000 a minute      | 250, 25 a second     |
| read of a scale set     | 36, 12 a minute | 2400, 800 a minute        | the same 250         |
| poll of an operation    | 45, 15 a minute | 15000, 5000 a minute      | the same 250         |
| write (of a VM: counts  | 12, 4 a minute  | 1500, 500 a minute        | 200, 10 a second     |
| twice at compute)       |                 |                           |                      |

Here are the same buckets, a tenth smaller: calls that leave in good order may arrive in a bunch. The recorded answers
to a PATCH of a rested VM leave 10 of 12, so it is taken to cost two; if the next answer leaves more, that counts. What
Azure says is left of a host's bucket is believed either way, since a host is asked one thing at a time and others use
it too; of a subscription's only when it is less, since other calls are under way.

A 429 closes the bucket that it is about until Retry-After has passed. Nothing here delays hosts of another
subscription.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any

from podidentity_azure.errors import THROTTLED_S, Fault, retry_after_s
from podidentity_azure.operations import Answer
from podidentity_core.errors import Throttled
from podidentity_core.ports import Clock, Meter
from podidentity_core.resource_ids import Host, HostKind

SHARE = 0.9
"""How much of a bucket we use. The tenth covers a second of jitter at Resource Manager, and 15 s at a host."""

MOST_LIMITS = 64
"""How many limits the metrics name; Azure has about a dozen that concern us."""

_SWEEP_AT = 1000


class Call(Enum):
    """What is asked of Resource Manager, by its name in metrics."""

    READ = "GET"
    WRITE = "PATCH"
    POLL = "POLL"


PATIENCE_S: Mapping[Call, float] = {Call.READ: 3.0, Call.WRITE: 3.0, Call.POLL: 1.0}
"""How long a call may wait here for its budget. Polls less, so that they never keep reads and writes out."""


class Scope(IntEnum):
    """Whose calls Azure counts together: one of the three buckets of a call, in the order of `limits`."""

    HOST = 0
    SUBSCRIPTION_AT_COMPUTE = 1
    SUBSCRIPTION = 2


@dataclass(frozen=True, slots=True)
class Limit:
    """A token bucket by Azure's name for it: how many tokens it holds, how many come back, how many a call takes."""

    name: str
    size: int
    per_minute: int
    cost: int = 1


def _at_compute(group: str, host: tuple[int, int], subscription: tuple[int, int], cost: int = 1) -> tuple[Limit, Limit]:
    name = f"Microsoft.Compute/{group}"
    return Limit(f"{name}Resource", *host, cost), Limit(f"{name}SubscriptionMaximum", *subscription, cost)


_AT_COMPUTE: Mapping[tuple[Call, HostKind], tuple[Limit, Limit]] = {
    (Call.READ, HostKind.VM): _at_compute("LowCostGet", (36, 12), (24_000, 8_000)),
    (Call.READ, HostKind.SCALE_SET): _at_compute("GetVMScaleSet", (36, 12), (2_400, 800)),
    (Call.WRITE, HostKind.VM): _at_compute("UpdateVM", (12, 4), (1_500, 500), cost=2),
    (Call.WRITE, HostKind.SCALE_SET): _at_compute("VMScaleSetActions", (12, 4), (1_500, 500)),
    (Call.POLL, HostKind.VM): _at_compute("GetOperation", (45, 15), (15_000, 5_000)),
    (Call.POLL, HostKind.SCALE_SET): _at_compute("GetOperation", (45, 15), (15_000, 5_000)),
}
_READS = Limit("subscription-reads", 250, 25 * 60)
_WRITES = Limit("subscription-writes", 200, 10 * 60)


def limits(call: Call, kind: HostKind) -> tuple[Limit, Limit, Limit]:
    """Return the limits that *call* to a host of *kind* counts against, by `Scope`."""
    return (*_AT_COMPUTE[call, kind], _WRITES if call is Call.WRITE else _READS)


class Bucket:
    """Our copy of one bucket of Azure's. A full one is like none at all."""

    __slots__ = ("_closed_until_s", "_empty_at_s", "_full_s", "_promised_s", "_token_s", "limit")

    def __init__(self, limit: Limit, now_s: float) -> None:
        self.limit = limit
        self._token_s = 60 / limit.per_minute
        self._full_s = limit.size * SHARE * self._token_s  # from empty to full
        self._empty_at_s = now_s - self._full_s  # in the future while tokens are taken that have still to come
        self._closed_until_s = self._promised_s = now_s

    def left(self, now_s: float) -> float:
        """How many tokens there are, not below none."""
        return max(0.0, min(self._full_s, now_s - self._empty_at_s) / self._token_s)

    def wait_s(self, now_s: float) -> float:
        """How long the next call has to wait."""
        return max(0.0, self._closed_until_s - now_s, self._empty_at_s + self._cost_s - now_s)

    def take(self, now_s: float) -> None:
        """Take the tokens of a call that will be made after `wait_s`."""
        self._empty_at_s = max(self._empty_at_s, now_s - self._full_s) + self._cost_s

    def promise_s(self, now_s: float) -> float:
        """How long somebody who is sent away had better wait: as long as all who were sent away before, and a turn."""
        turn_s = max(self._promised_s, now_s + self.wait_s(now_s))
        self._promised_s = turn_s + self._cost_s
        return turn_s - now_s

    def close(self, until_s: float) -> None:
        """Let nobody pass before *until_s*, then one, and others as tokens come back."""
        self._closed_until_s = max(self._closed_until_s, until_s)
        self._empty_at_s = max(self._empty_at_s, until_s - self._cost_s)

    def is_closed(self, now_s: float) -> bool:
        """Whether Azure has asked for patience, and the time is not over."""
        return self._closed_until_s > now_s

    def correct(self, now_s: float, left: int, *, may_rise: bool) -> None:
        """Take over what Azure says is left."""
        told_s = max(now_s - left * self._token_s, now_s - self._full_s)
        if may_rise or told_s > self._empty_at_s:
            self._empty_at_s = told_s

    def is_full(self, now_s: float) -> bool:
        """Whether nothing would change if it were forgotten."""
        return max(self._empty_at_s + self._full_s, self._promised_s, self._closed_until_s) <= now_s

    @property
    def _cost_s(self) -> float:
        return self.limit.cost * self._token_s


class Quotas:
    """The buckets of all hosts and subscriptions. One for the whole process, whoever the calls are made as."""

    def __init__(self, clock: Clock, meter: Meter) -> None:
        self._clock = clock
        self._meter = meter
        self._buckets: dict[tuple[str, Hashable], Bucket] = {}
        self._sweep_at = _SWEEP_AT
        self._shown: set[str] = set()

    def __len__(self) -> int:
        return len(self._buckets)

    async def admit(self, host: Host, call: Call) -> None:
        """Return when *call* may be made, within `PATIENCE_S`.

        Raises:
            Throttled: when that takes longer; says how long, and nothing is kept for the caller until then.
        """
        buckets, now_s = self._of(host, call), self._clock.monotonic_s()
        slowest = max(buckets, key=lambda bucket: bucket.wait_s(now_s))
        wait_s = slowest.wait_s(now_s)
        if wait_s > PATIENCE_S[call]:
            # Many wait for a subscription: each is told another time, or all would come back at once.
            told_s = wait_s if slowest is buckets[Scope.HOST] else slowest.promise_s(now_s)
            raise _held_back(host, call, slowest, told_s, now_s)
        for bucket in buckets:
            bucket.take(now_s)
        if wait_s > 0:
            await self._clock.sleep(wait_s)
            self._refuse_if_closed(host, call)

    def left(self, host: Host, call: Call) -> float:
        """How many such calls *host* bears now."""
        bucket = self._of(host, call)[Scope.HOST]
        return bucket.left(self._clock.monotonic_s()) / bucket.limit.cost

    def learn(self, host: Host, call: Call, answer: Answer) -> None:
        """Take in what the *answer* to a call says about the budgets, and show what is left of them."""
        now_s, left = self._clock.monotonic_s(), remaining(answer.headers)
        for name, count in left.items():
            self._show(name, count)
        buckets = self._of(host, call)
        for scope, bucket in zip(Scope, buckets, strict=True):
            if bucket.limit.name in left:
                bucket.correct(now_s, left[bucket.limit.name], may_rise=scope is Scope.HOST)
        if (wait_s := _asked_wait_s(answer)) is not None:
            buckets[throttled_scope(answer)].close(now_s + wait_s)

    def _refuse_if_closed(self, host: Host, call: Call) -> None:
        """An answer to somebody else may have closed a bucket while this call waited."""
        now_s = self._clock.monotonic_s()
        for bucket in self._of(host, call):
            if bucket.is_closed(now_s):
                raise _held_back(host, call, bucket, bucket.wait_s(now_s), now_s)

    def _of(self, host: Host, call: Call) -> tuple[Bucket, ...]:
        """The buckets of *call*, by `Scope`."""
        now_s, subscription = self._clock.monotonic_s(), host.subscription.lower()
        if len(self._buckets) >= self._sweep_at:
            self._forget_the_full(now_s)
        owners: tuple[Hashable, ...] = (host, subscription, subscription)
        found = []
        for limit, owner in zip(limits(call, host.kind), owners, strict=True):
            key = limit.name, owner
            if key not in self._buckets:
                self._buckets[key] = Bucket(limit, now_s)
            found.append(self._buckets[key])
        return tuple(found)

    def _forget_the_full(self, now_s: float) -> None:
        """Now and then, so that each new bucket costs little: twice as many are kept as are needed, at most."""
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if not bucket.is_full(now_s)}
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._buckets))

    def _show(self, name: str, count: int) -> None:
        if name in self._shown or len(self._shown) < MOST_LIMITS:
            self._shown.add(name)
            self._meter.gauge("cloud_provider_remaining_requests", count, limit=name)


_REMAINING = "x-ms-ratelimit-remaining-"
_MOST_DIGITS = 10


def remaining(headers: Mapping[str, str]) -> dict[str, int]:
    """Return how many calls an answer says are left, by Azure's names of the limits. Header names are in lower case.

    Those of Resource Manager are `subscription-reads`, `subscription-global-writes` and so on; those of the compute
    provider stand in one header, such as `Microsoft.Compute/UpdateVMResource;10,Microsoft.Compute/...Maximum;1498`.
    """
    pairs = [(name.removeprefix(_REMAINING), value) for name, value in headers.items() if name.startswith(_REMAINING)]
    told = [pair for pair in pairs if pair[0] != "resource"]
    for entry in dict(pairs).get("resource", "").split(","):
        name, _, count = entry.rpartition(";")
        told.append((name, count))
    numbers = ((name.strip(), count.strip()) for name, count in told)
    return {name: int(count) for name, count in numbers if name and count.isdecimal() and len(count) < _MOST_DIGITS}


_OLD_WORDS = "requests for subscription '"
_NO_BUDGET = ("Microsoft.Compute/VmssQueuedVMOperations",)  # a count of what waits: none is what it usually says


def throttled_scope(answer: Answer) -> Scope:
    """Return whose calls *answer*, a 429 or another request for patience, is about.

    The compute provider always says "for this subscription", so what counts is the limit that it names, in the body's
    details or as one with nothing left: the limits of single hosts end in `Resource`.
    """
    if answer.status != 429:
        return Scope.HOST
    fault = Fault.of_body(answer.body)
    spent = [name for name, count in remaining(answer.headers).items() if count == 0 and name not in _NO_BUDGET]
    at_resource_manager = any(name.startswith("subscription-") for name in spent)
    if at_resource_manager or fault.code == "SubscriptionRequestsThrottled" or _OLD_WORDS in fault.text:
        return Scope.SUBSCRIPTION
    named = [*_targets(answer.body)] or spent
    of_subscription = not any(name.endswith("Resource") for name in named)
    if of_subscription and (named or "for this subscription" in fault.text):
        return Scope.SUBSCRIPTION_AT_COMPUTE
    return Scope.HOST


def _targets(body: Mapping[str, Any]) -> Iterator[str]:
    error = body.get("error", body)
    for detail in (error.get("details") or ()) if isinstance(error, Mapping) else ():
        if isinstance(detail, Mapping) and isinstance(detail.get("target"), str):
            yield detail["target"]


def _asked_wait_s(answer: Answer) -> float | None:
    if answer.status == 429:
        stated = retry_after_s(answer.headers)
        return THROTTLED_S if stated is None else stated
    return retry_after_s(answer.headers) if answer.status >= 400 else None


def _held_back(host: Host, call: Call, bucket: Bucket, wait_s: float, now_s: float) -> Throttled:
    limit = bucket.limit
    why = (
        f"Azure has asked for patience at its limit {limit.name}"
        if bucket.is_closed(now_s)
        else f"{limit.name} of Azure allows {limit.size}, then {limit.per_minute} a minute"
    )
    return Throttled(f"{call.value} {host}: held back, since {why}; next try in {wait_s:.1f} s", retry_after_s=wait_s)

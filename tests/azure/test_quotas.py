"""Azure's budgets, kept by us: how many calls pass, who waits and for how long, and what a 429 is about."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from apps.sandbox.limits import Limits
from podidentity_azure.errors import LONGEST_RETRY_AFTER_S, THROTTLED_S
from podidentity_azure.operations import Answer
from podidentity_azure.quotas import (
    MOST_LIMITS,
    PATIENCE_S,
    Call,
    Quotas,
    Scope,
    limits,
    remaining,
    throttled_scope,
)
from podidentity_core.errors import Throttled
from podidentity_core.resource_ids import Host
from podidentity_core.testing import builders
from podidentity_core.testing.clock import FakeClock, settle
from podidentity_core.testing.fakes import FakeMeter

SET, VM = builders.scale_set("pool"), builders.vm("vm-1")
ELSEWHERE = replace(SET, subscription="another")
RESOURCE = "x-ms-ratelimit-remaining-resource"


@pytest.fixture
def meter() -> FakeMeter:
    return FakeMeter()


@pytest.fixture
def quotas(clock: Any, meter: FakeMeter) -> Quotas:
    return Quotas(clock, meter)


async def wait_of(quotas: Quotas, clock: Any, host: Host, call: Call) -> float:
    """Ask for a call: how long it was held back here, or is to stay away."""
    before_s = clock.now_s
    try:
        await quotas.admit(host, call)
    except Throttled as error:
        return error.retry_after_s
    return float(clock.now_s - before_s)


async def use_up(quotas: Quotas, host: Host, call: Call) -> int:
    """Make calls until one is sent away; return how many were made."""
    made = 0
    while True:
        try:
            await quotas.admit(host, call)
        except Throttled:
            return made
        made += 1


class Azure:
    """The sandbox's buckets, with Azure's published sizes: refuses what is too much."""

    def __init__(self, clock: Any) -> None:
        self.limits = Limits(True, clock.monotonic_s)
        self.calls: Counter[Call] = Counter()
        self.refused: list[str] = []

    def take(self, host: Host, call: Call) -> None:
        self.calls[call] += 1
        for limit, owner in zip(limits(call, host.kind), (host.key, host.subscription, host.subscription), strict=True):
            if self.limits.take(limit.name.removeprefix("Microsoft.Compute/"), owner)[1]:
                self.refused.append(limit.name)


@pytest.mark.parametrize(
    ("host", "call", "at_once", "a_minute"),
    [
        pytest.param(VM, Call.READ, 32, 12, id="reads of a VM"),
        pytest.param(SET, Call.READ, 32, 12, id="reads of a scale set"),
        pytest.param(VM, Call.WRITE, 5, 2, id="writes of a VM, which cost two"),
        pytest.param(SET, Call.WRITE, 10, 4, id="writes of a scale set"),
        pytest.param(VM, Call.POLL, 40, 15, id="polls"),
    ],
)
async def test_a_host_bears_so_many_calls_at_once_and_so_many_a_minute(
    quotas: Quotas, clock: Any, host: Host, call: Call, at_once: int, a_minute: int
) -> None:
    azure, begun_s, made = Azure(clock), clock.now_s, []
    while clock.now_s - begun_s <= 601:
        try:
            await quotas.admit(host, call)
        except Throttled as error:
            await clock.sleep(error.retry_after_s)
            continue
        azure.take(host, call)
        made.append(clock.now_s - begun_s)

    assert sum(when_s == 0 for when_s in made) == at_once
    assert len(made) - at_once == pytest.approx(10 * a_minute, abs=1)
    assert azure.refused == []


async def test_a_short_wait_is_slept_and_a_long_one_sends_away(quotas: Quotas, clock: Any) -> None:
    await use_up(quotas, SET, Call.READ)
    clock.slept.clear()

    with pytest.raises(Throttled) as caught:
        await quotas.admit(SET, Call.READ)
    await clock.sleep(caught.value.retry_after_s - 2)
    await quotas.admit(SET, Call.READ)

    assert caught.value.retry_after_s > PATIENCE_S[Call.READ]
    assert clock.slept[1:] == [pytest.approx(2)]


async def test_who_is_sent_away_is_told_the_host_the_limit_and_the_time(quotas: Quotas) -> None:
    await use_up(quotas, VM, Call.WRITE)

    with pytest.raises(Throttled) as caught:
        await quotas.admit(VM, Call.WRITE)

    assert str(caught.value) == (
        f"PATCH {VM}: held back, since Microsoft.Compute/UpdateVMResource of Azure allows 12, then 4 a minute; "
        f"next try in {caught.value.retry_after_s:.1f} s"
    )


async def test_asking_again_too_early_makes_the_wait_of_a_host_no_longer(quotas: Quotas, clock: Any) -> None:
    await use_up(quotas, VM, Call.WRITE)

    waits_s = [await wait_of(quotas, clock, VM, Call.WRITE) for _ in range(3)]

    assert waits_s[0] == waits_s[1] == waits_s[2] == 18


async def test_hosts_calls_and_subscriptions_do_not_share_a_hosts_budget(quotas: Quotas) -> None:
    await use_up(quotas, SET, Call.WRITE)

    await quotas.admit(builders.scale_set("other"), Call.WRITE)
    await quotas.admit(SET, Call.READ)
    await quotas.admit(SET, Call.POLL)
    await quotas.admit(ELSEWHERE, Call.WRITE)


async def test_one_host_is_known_by_every_spelling_of_its_id(quotas: Quotas) -> None:
    await use_up(quotas, SET, Call.WRITE)

    with pytest.raises(Throttled):
        await quotas.admit(replace(SET, subscription=SET.subscription.upper(), name="POOL"), Call.WRITE)


async def test_many_hosts_of_a_subscription_are_read_at_its_pace_and_told_different_times(meter: FakeMeter) -> None:
    clock = FakeClock()
    quotas, azure, asked = Quotas(clock, meter), Azure(clock), 0

    async def read(host: Host) -> None:
        nonlocal asked
        while True:
            asked += 1
            try:
                await quotas.admit(host, Call.READ)
            except Throttled as error:
                await clock.sleep(error.retry_after_s)
            else:
                azure.take(host, Call.READ)
                return

    async with asyncio.TaskGroup() as group:
        for number in range(1000):
            group.create_task(read(builders.vm(f"vm-{number}")))
        await settle()
        at_once = azure.calls[Call.READ]
        await clock.advance((1000 - at_once) / 25 + 1)

    assert at_once == 225
    assert azure.calls[Call.READ] == 1000
    assert azure.refused == []
    assert asked < 1000 * 2, "nobody is sent away twice"


async def test_polls_of_many_hosts_leave_room_for_reads(meter: FakeMeter) -> None:
    clock = FakeClock()
    quotas = Quotas(clock, meter)
    polls = [
        asyncio.create_task(quotas.admit(builders.vm(f"vm-{number}"), Call.POLL))
        for number in range(50)
        for _ in "123456"
    ]
    await settle()

    read = asyncio.create_task(quotas.admit(SET, Call.READ))
    await clock.advance(PATIENCE_S[Call.POLL] + 1 / 25)

    assert read.done()
    assert read.exception() is None
    assert sum(isinstance(end, Throttled) for end in await asyncio.gather(*polls, return_exceptions=True)) == 50


async def test_ten_busy_minutes_of_many_hosts_are_never_too_much_for_azure(meter: FakeMeter) -> None:
    """Each call takes up to a second to arrive, so that they come in bunches; four subscriptions, 120 hosts."""
    clock, chance = FakeClock(), random.Random(8)  # noqa: S311  -- no secret
    quotas, azure = Quotas(clock, meter), Azure(clock)
    kinds = (builders.vm, builders.scale_set)

    async def work(host: Host) -> None:
        while True:
            call = chance.choice([Call.READ, Call.WRITE, Call.POLL, Call.POLL, Call.POLL])
            try:
                await quotas.admit(host, call)
            except Throttled as error:
                await clock.sleep(error.retry_after_s)
                continue
            await clock.sleep(chance.uniform(0.01, 0.9))
            azure.take(host, call)

    hosts = [replace(kinds[n % 2](f"host-{n}"), subscription=f"s-{n % 4 if n < 8 else 0}") for n in range(120)]
    tasks = [asyncio.create_task(work(host)) for host in hosts]
    await clock.advance(600)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    print(f"{dict(azure.calls)} in 600 s")
    assert azure.refused == []
    assert azure.calls[Call.WRITE] > 1000


# What Azure answers


def arm_throttles(what: str = "read") -> Mapping[str, Any]:
    told = f"Number of '{what}' requests for subscription 's' actor 'o' exceeded. Please try again after '10' seconds."
    return {"error": {"code": "SubscriptionRequestsThrottled", "message": told}}


def compute_throttles(*targets: str) -> Mapping[str, Any]:
    told = "The server rejected the request because too many requests have been received for this subscription."
    details = [
        {"code": "TooManyRequests", "target": target, "message": json.dumps({"operationGroup": target})}
        for target in targets
    ]
    return {"code": "OperationNotAllowed", "message": told, **({"details": details} if details else {})}


def left(**counts: int) -> dict[str, str]:
    return {RESOURCE: ",".join(f"Microsoft.Compute/{name};{count}" for name, count in counts.items())}


POLICY = {
    "error": {"code": "ResourceReadFailed", "message": "Policy required full content … failed with status '429'."}
}
AT_COMPUTE = Scope.SUBSCRIPTION_AT_COMPUTE
OLD = "Number of requests for subscription 's' and operation 'GET/x' exceeded the backend storage limit."


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        pytest.param({}, arm_throttles(), Scope.SUBSCRIPTION, id="Resource Manager"),
        pytest.param({}, {"error": {"code": "X", "message": OLD}}, Scope.SUBSCRIPTION, id="Resource Manager, older"),
        pytest.param(
            {"x-ms-ratelimit-remaining-subscription-reads": "0"}, {}, Scope.SUBSCRIPTION, id="Resource Manager, header"
        ),
        pytest.param(left(HighCostGet=0), compute_throttles("HighCostGet"), AT_COMPUTE, id="compute"),
        pytest.param(left(HighCostGet=0), {}, AT_COMPUTE, id="compute, header"),
        pytest.param({}, compute_throttles("HighCostGet"), AT_COMPUTE, id="compute, details"),
        pytest.param(
            {}, {"error": compute_throttles("HighCostGet")}, AT_COMPUTE, id="compute, outer error"
        ),
        pytest.param({}, compute_throttles(), AT_COMPUTE, id="compute, words alone"),
        pytest.param(
            left(UpdateVMSubscriptionMaximum=0), compute_throttles(), AT_COMPUTE, id="compute, maximum"
        ),
        pytest.param(
            left(UpdateVMSubscriptionMaximum=7, UpdateVMResource=0), compute_throttles(), Scope.HOST, id="host, header"
        ),
        pytest.param({}, compute_throttles("UpdateVMResource"), Scope.HOST, id="host, details"),
        pytest.param(
            left(VMScaleSetActionsResource=0, VmssQueuedVMOperations=0), compute_throttles(), Scope.HOST,
            id="host, beside a count that is no limit",
        ),
        pytest.param({}, POLICY, Scope.HOST, id="Azure Policy"),
        pytest.param({}, {}, Scope.HOST, id="no words"),
        pytest.param({}, {"details": "none", "error": None}, Scope.HOST, id="a body of another form"),
        pytest.param({}, {"details": [None, {"target": 7}], "code": 3}, Scope.HOST, id="details of another form"),
    ],
)  # fmt: skip
def test_a_429_tells_whose_calls_it_is_about(headers: dict[str, str], body: Mapping[str, Any], expected: Scope) -> None:
    assert throttled_scope(Answer(429, headers, body)) is expected


def test_another_wish_for_patience_is_the_hosts_whatever_it_says() -> None:
    assert throttled_scope(Answer(503, {}, arm_throttles())) is Scope.HOST


OTHER_SET, OTHER_VM = builders.scale_set("other"), builders.vm("other")


@pytest.mark.parametrize(
    ("call", "answer", "closed", "open_"),
    [
        pytest.param(
            Call.READ,
            Answer(429, {"retry-after": "120"}, arm_throttles()),
            [(SET, Call.READ), (OTHER_VM, Call.READ), (OTHER_SET, Call.POLL)],
            [(SET, Call.WRITE), (ELSEWHERE, Call.READ)],
            id="Resource Manager: all reads and polls of the subscription",
        ),
        pytest.param(
            Call.WRITE,
            Answer(429, {"retry-after": "120"}, arm_throttles("write")),
            [(SET, Call.WRITE), (OTHER_VM, Call.WRITE)],
            [(SET, Call.READ), (SET, Call.POLL), (ELSEWHERE, Call.WRITE)],
            id="Resource Manager: all writes of the subscription",
        ),
        pytest.param(
            Call.WRITE,
            Answer(429, {"retry-after": "120", **left(VMScaleSetActionsSubscriptionMaximum=0)}, compute_throttles()),
            [(SET, Call.WRITE), (OTHER_SET, Call.WRITE)],
            [(OTHER_VM, Call.WRITE), (SET, Call.READ), (ELSEWHERE, Call.WRITE)],
            id="compute: this kind of call in the subscription",
        ),
        pytest.param(
            Call.WRITE,
            Answer(429, {"retry-after": "120", **left(VMScaleSetActionsResource=0)}, compute_throttles()),
            [(SET, Call.WRITE)],
            [(OTHER_SET, Call.WRITE), (SET, Call.READ), (SET, Call.POLL)],
            id="compute: the host",
        ),
        pytest.param(
            Call.READ,
            Answer(429, {"retry-after": "120"}, POLICY),
            [(SET, Call.READ)],
            [(OTHER_SET, Call.READ)],
            id="Azure Policy: the host",
        ),
        pytest.param(
            Call.WRITE,
            Answer(503, {"retry-after": "120"}),
            [(SET, Call.WRITE)],
            [(OTHER_SET, Call.WRITE)],
            id="an overloaded server: the host",
        ),
    ],
)
async def test_a_request_for_patience_is_obeyed_by_those_whom_it_concerns(
    quotas: Quotas,
    clock: Any,
    call: Call,
    answer: Answer,
    closed: list[tuple[Host, Call]],
    open_: list[tuple[Host, Call]],
) -> None:
    begun_s = clock.now_s
    quotas.learn(SET, call, answer)

    assert [await wait_of(quotas, clock, *what) for what in open_] == [0] * len(open_)
    told_s = [await wait_of(quotas, clock, *what) for what in closed]
    assert told_s == pytest.approx([120] * len(closed), abs=1)
    assert clock.now_s == begun_s
    await clock.sleep(120)
    assert await wait_of(quotas, clock, *closed[0]) == 0


@pytest.mark.parametrize(
    ("answer", "expected_s"),
    [
        (Answer(429, {}, POLICY), THROTTLED_S),
        (Answer(429, {"retry-after": "1200"}, POLICY), 1200),
        (Answer(429, {"retry-after": "999999999999"}, POLICY), LONGEST_RETRY_AFTER_S),
        (Answer(500, {"retry-after": "180"}), 180),
        (Answer(409, {"retry-after": "30"}), 30),
        (Answer(500, {}), 0),
        (Answer(202, {"retry-after": "180"}), 0),
    ],
    ids=["no wish", "a wish", "a slip", "a breakdown", "a conflict", "a breakdown without a wish", "a hint for polls"],
)
async def test_how_long_the_host_is_left_alone(quotas: Quotas, clock: Any, answer: Answer, expected_s: float) -> None:
    quotas.learn(SET, Call.WRITE, answer)

    assert await wait_of(quotas, clock, SET, Call.WRITE) == expected_s


async def test_a_refusal_says_that_azure_has_asked_for_it(quotas: Quotas) -> None:
    quotas.learn(SET, Call.READ, Answer(429, {"retry-after": "120"}, arm_throttles()))

    with pytest.raises(
        Throttled, match="Azure has asked for patience at its limit subscription-reads; next try in 120"
    ):
        await quotas.admit(OTHER_VM, Call.READ)


async def test_when_the_time_is_over_a_subscriptions_hosts_come_back_one_after_the_other(
    quotas: Quotas, clock: Any
) -> None:
    quotas.learn(SET, Call.READ, Answer(429, {"retry-after": "120"}, arm_throttles()))

    told_s = [await wait_of(quotas, clock, builders.vm(f"vm-{number}"), Call.READ) for number in range(100)]

    gaps_s = [later - earlier for earlier, later in pairwise(told_s)]
    assert told_s[0] == 120
    assert gaps_s == pytest.approx([1 / 25] * 99)


async def test_who_waits_when_azure_asks_for_patience_is_sent_away(meter: FakeMeter) -> None:
    clock = FakeClock()
    quotas = Quotas(clock, meter)
    await use_up(quotas, VM, Call.WRITE)
    await clock.advance(16)
    waiting = asyncio.create_task(quotas.admit(VM, Call.WRITE))
    await settle()
    assert not waiting.done()

    quotas.learn(OTHER_SET, Call.WRITE, Answer(429, {"retry-after": "60"}, arm_throttles("write")))
    await clock.advance(3)

    with pytest.raises(Throttled) as caught:
        await waiting
    assert caught.value.retry_after_s == pytest.approx(58, abs=1)


async def test_an_answer_that_was_under_way_does_not_end_the_patience(quotas: Quotas, clock: Any) -> None:
    quotas.learn(SET, Call.WRITE, Answer(429, {"retry-after": "60", **left(VMScaleSetActionsResource=0)}))

    quotas.learn(SET, Call.WRITE, Answer(200, left(VMScaleSetActionsResource=11)))

    assert await wait_of(quotas, clock, SET, Call.WRITE) == 60


# What is left


async def test_what_azure_says_is_left_of_a_hosts_budget_is_believed(quotas: Quotas) -> None:
    """The autoscaler and others use it too, and a write of a VM that costs one leaves more than was feared."""
    quotas.learn(VM, Call.WRITE, Answer(200, left(UpdateVMResource=4)))
    assert quotas.left(VM, Call.WRITE) == 2
    assert await use_up(quotas, VM, Call.WRITE) == 2

    quotas.learn(VM, Call.WRITE, Answer(200, left(UpdateVMResource=10)))
    assert quotas.left(VM, Call.WRITE) == pytest.approx(5)


async def test_more_than_our_share_is_not_believed(quotas: Quotas) -> None:
    quotas.learn(SET, Call.READ, Answer(200, left(GetVMScaleSetResource=30_000)))

    assert quotas.left(SET, Call.READ) == pytest.approx(32.4)


async def test_of_a_subscriptions_budget_only_less_is_believed_since_other_calls_are_under_way(
    meter: FakeMeter,
) -> None:
    quotas = Quotas(FakeClock(), meter)
    for count in (3, 199):
        quotas.learn(SET, Call.WRITE, Answer(200, {"x-ms-ratelimit-remaining-subscription-writes": str(count)}))

    tasks = [asyncio.create_task(quotas.admit(builders.vm(f"vm-{number}"), Call.WRITE)) for number in range(10)]
    await settle()

    assert [task.done() for task in tasks] == [True] * 3 + [False] * 7
    for task in tasks:
        task.cancel()


async def test_what_a_write_leaves_is_no_budget_of_polls(quotas: Quotas) -> None:
    quotas.learn(SET, Call.WRITE, Answer(200, left(VMScaleSetActionsResource=0, VmssQueuedVMOperations=0)))

    assert quotas.left(SET, Call.POLL) == pytest.approx(40.5)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, {}),
        ({RESOURCE: "Microsoft.Compute/A;1498"}, {"Microsoft.Compute/A": 1498}),
        ({RESOURCE: "A;1498, B; 10,C;0"}, {"A": 1498, "B": 10, "C": 0}),
        ({"x-ms-ratelimit-remaining-subscription-writes": "199"}, {"subscription-writes": 199}),
        ({"x-ms-ratelimit-remaining-subscription-global-reads": "3749"}, {"subscription-global-reads": 3749}),
        ({RESOURCE: "A;many,;3,B,;,C;-1,D;²,,"}, {}),
        ({RESOURCE: f"A;{'9' * 5000}"}, {}),
        ({"x-ms-request-id": "7", "etag": "8"}, {}),
    ],
)  # fmt: skip
def test_what_is_left_is_read_from_the_headers(headers: dict[str, str], expected: dict[str, int]) -> None:
    assert remaining(headers) == expected


def test_what_is_left_is_shown_by_azures_name_of_the_limit(quotas: Quotas, meter: FakeMeter) -> None:
    quotas.learn(
        SET, Call.READ, Answer(200, {**left(LowCostGetResource=34), f"{RESOURCE[:23]}-subscription-reads": "9"})
    )
    quotas.learn(SET, Call.READ, Answer(404, left(LowCostGetResource=33)))

    assert meter.gauges["cloud_provider_remaining_requests:Microsoft.Compute/LowCostGetResource"] == 33


def test_the_metrics_name_no_more_limits_than_there_can_be(quotas: Quotas, meter: FakeMeter) -> None:
    for number in range(1000):
        quotas.learn(SET, Call.READ, Answer(200, left(**{f"Name{number}": 1})))
    quotas.learn(SET, Call.READ, Answer(200, left(Name0=7)))

    assert len(meter.gauges) == MOST_LIMITS
    assert meter.gauges["cloud_provider_remaining_requests:Microsoft.Compute/Name0"] == 7


async def test_budgets_of_hosts_that_rest_are_forgotten_and_those_in_use_are_not(quotas: Quotas, clock: Any) -> None:
    quotas.learn(SET, Call.WRITE, Answer(429, {"retry-after": "3600"}, POLICY))
    most = 0
    for number in range(10_000):
        await quotas.admit(builders.vm(f"vm-{number}"), Call.READ)
        await clock.sleep(0.2)
        most = max(most, len(quotas))

    assert most <= 1002
    assert await wait_of(quotas, clock, SET, Call.WRITE) == pytest.approx(1600, abs=1)

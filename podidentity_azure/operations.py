"""Following a long-running operation of Resource Manager to its end.

Resource Manager says "started" and gives an address to ask at, but neither when nor how often; it has 45 polls for
each resource and grants 15 more a minute (for the resource itself 36 and 12). So the waits grow with the time that has
passed: the lag is a tenth of it at most, and never below a quarter of a second.

| the operation takes | polls, address of the operation | allowed | polls, resource itself | allowed |
|---------------------|---------------------------------|---------|------------------------|---------|
| 5 s                 | 18                              | 46      | 18                     | 37      |
| 60 s                | 45                              | 60      | 44                     | 48      |
| 15 min              | 255                             | 270     | 212                    | 216     |

Operations that follow each other at once may still find the budget spent; ARM's answers say how much is left, and
the fewer polls are left, the longer each wait.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from podidentity_azure.errors import Fault, retry_after_s
from podidentity_core.errors import TransientError
from podidentity_core.ports import Clock

OPERATION_LIMIT_S = 900.0
"""How long an operation is followed. Source: go-autorest autorest/azure/async.go, by way of mic.go."""

POLL_FLOOR_S = 0.25
POLL_LAG = 0.1
POLL_CAP_S = 4.0
RESOURCE_POLL_CAP_S = 5.0
"""The last wait of either column: what the budget grants in the long run, one poll in 4 s and in 5 s."""

TOLERATED_FAILURES = 3
"""How many polls may fail one after the other. Source: go-autorest's retry count for polls."""


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """An answer of Resource Manager. Header names are in lower case. The body may be long, and headers may hold a
    signed address: neither is shown.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Answer({self.status})"


def poll_delay_s(elapsed_s: float, *, cap_s: float = POLL_CAP_S, polls_left: int | None = None) -> float:
    """Return how long to wait before the next poll of an operation that began *elapsed_s* ago."""
    scarcity_s = 0.0 if polls_left is None else cap_s / (polls_left + 1)
    return min(cap_s, max(POLL_FLOOR_S, elapsed_s * POLL_LAG, scarcity_s))


def polls_left(headers: Mapping[str, str]) -> int | None:
    """Return how many more requests of this kind the resource bears now, where ARM says so.

    The header is a list such as `Microsoft.Compute/GetOperationResource;44,Microsoft.Compute/...Maximum;14998`.
    """
    pairs = (pair.rpartition(";") for pair in headers.get("x-ms-ratelimit-remaining-resource", "").split(","))
    left = [int(count) for name, _, count in pairs if name.strip().endswith("Resource") and count.strip().isdigit()]
    return min(left, default=None)


def in_progress(body: Mapping[str, Any]) -> bool:
    """Whether *body*, of a resource, speaks of a change that has not ended."""
    return state_of(body) not in _ENDED


def state_of(body: Mapping[str, Any]) -> str:
    """Return the state of the resource in *body*, in lower case; one that names none is at rest."""
    return str((body.get("properties") or {}).get("provisioningState") or "Succeeded").lower()


_ENDED = ("succeeded", "failed", "canceled")


Ask = Callable[[str], Awaitable[Answer]]
"""Gets an address of Resource Manager. Raises `TransientError` only; any status is an answer."""


class Follower:
    """Follows one operation that changes the resource at *resource_url*."""

    def __init__(self, ask: Ask, clock: Clock, resource_url: str) -> None:
        self._ask = ask
        self._clock = clock
        self._resource_url = resource_url
        self._failures = 0

    async def follow(self, started: Answer) -> tuple[Fault | None, Answer | None]:
        """Wait for the end of what *started* began: why it failed, and the resource if that is what was asked.

        Raises:
            TransientError: when it cannot be followed: polls keep failing, or it takes longer than 15 minutes.
        """
        operation_url = started.headers.get("azure-asyncoperation", "")
        url = operation_url or started.headers.get("location") or self._resource_url
        if url == self._resource_url and not in_progress(started.body):
            return None, None
        begun_s, latest = self._clock.monotonic_s(), started
        while (elapsed_s := self._clock.monotonic_s() - begun_s) < OPERATION_LIMIT_S:
            await self._clock.sleep(min(self._wait_s(latest, elapsed_s, url), OPERATION_LIMIT_S - elapsed_s))
            answer = await self._poll(url)
            if answer is None:
                continue
            latest = answer
            if answer.status in (401, 403, 404, 410) and url != self._resource_url:
                # The operation lies outside the resource: the right to change a host is no right to follow the change.
                url = self._resource_url
                continue
            state = _operation_state(answer.body) if url == operation_url else state_of(answer.body)
            if _has_ended(answer, state):
                return _fault(answer, state), answer if url == self._resource_url else None
        raise TransientError(f"the operation did not end within {OPERATION_LIMIT_S:.0f} s")

    def _wait_s(self, latest: Answer, elapsed_s: float, url: str) -> float:
        hint_s = retry_after_s(latest.headers)
        if hint_s is not None:
            return max(hint_s, POLL_FLOOR_S)
        cap_s = RESOURCE_POLL_CAP_S if url == self._resource_url else POLL_CAP_S
        return poll_delay_s(elapsed_s, cap_s=cap_s, polls_left=polls_left(latest.headers))

    async def _poll(self, url: str) -> Answer | None:
        """Ask once; None when nobody answered. Being throttled is no failure: the wait obeys it."""
        answer = None
        with suppress(TransientError):
            answer = await self._ask(url)
        if answer is not None and answer.status < 500 and answer.status != 408:
            self._failures = 0
            return answer
        self._failures += 1
        if self._failures > TOLERATED_FAILURES:
            raise TransientError(f"the operation cannot be followed: {self._failures} polls failed")
        return answer


def _operation_state(body: Mapping[str, Any]) -> str:
    """An operation names its state; whatever does not is not its end."""
    return str(body.get("status") or "").lower()


def _has_ended(answer: Answer, state: str) -> bool:
    """Whether there is nothing to wait for: a final state, or a refusal of the poll itself."""
    if answer.status >= 400:
        return answer.status < 500 and answer.status not in (408, 429)
    return answer.status != 202 and state in _ENDED


def _fault(answer: Answer, state: str) -> Fault | None:
    if answer.status >= 400:
        return Fault.of_body(answer.body, status=answer.status, default=f"the poll was answered {answer.status}")
    return None if state == "succeeded" else Fault.of_body(answer.body, default=f"the operation ended as {state}")

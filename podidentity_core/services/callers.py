"""Which pod a request comes from: by its address, and with a second look before anybody is refused.

The watch may be behind by a moment, or by minutes after a loss of the API server. So before a request from an unknown
address is refused, the API server is asked once; its answer is for that request alone, since only the watch tells when
a pod goes again.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence

from podidentity_core.errors import PodIdentityError
from podidentity_core.model import Pod
from podidentity_core.node_view import SYNCED, NodeView, sending_addresses
from podidentity_core.ports import Clock, Meter, PodReader
from podidentity_core.reasons import Explanation, Reason, because
from podidentity_core.services.waiters import Waiters
from podidentity_core.services.waiting import take_note, wait_at_most

log = logging.getLogger(__name__)

PATIENCE_S = 1.2
"""How long a request from an unknown address waits for its pod (the original looked 5 times in 1.2 s)."""
SECOND_LOOK_S = 0.3
"""So long the watch has to bring the pod before the API server is asked."""
SPACING_S = 1.0
"""The API server is asked once in this time, however many addresses are unknown."""
START_S = 60.0
"""How long a request waits while NMI reads for the first time what there is."""


class Callers:
    """Tells the pod behind an address."""

    def __init__(
        self, node: str, view: NodeView, waiters: Waiters, reader: PodReader, *, clock: Clock, meter: Meter
    ) -> None:
        self._node = node
        self._view = view
        self._waiters = waiters
        self._clock = clock
        self._meter = meter
        self._fresh = FreshPods(reader, clock)

    async def pod_at(self, address: str) -> Pod | Explanation:
        """Return the pod that *address* belongs to, once everything is known that existed at the start."""
        if not await self._has_read():
            return because(Reason.NOT_READ_YET, node=self._node)
        since_s = self._clock.monotonic_s()
        until_s = since_s + PATIENCE_S
        pods = (
            await self._seen(address, since_s + SECOND_LOOK_S)
            or await self._asked_for(address, since_s, until_s)
            or await self._seen(address, until_s)
        )
        if len(pods) == 1:
            return pods[0]
        if pods:
            return because(Reason.AMBIGUOUS_POD, address=address, node=self._node)
        # The original's name for it, five times a request (pkg/k8s/client.go:146): alerts ask whether it is above 0.
        self._meter.count("kubernetes_api_operations_errors_count", operation_type="get_pod_list")
        return because(Reason.UNKNOWN_POD, address=address, node=self._node)

    async def _has_read(self) -> bool:
        if not self._view.synced:
            await self._waiters.change_of(SYNCED, START_S)
        return self._view.synced

    async def _seen(self, address: str, until_s: float) -> Sequence[Pod]:
        while True:
            pods = self._view.pods_at(address)
            left_s = until_s - self._clock.monotonic_s()
            if pods or left_s <= 0 or self._waiters.ended:
                return pods
            await self._waiters.change_of(address, left_s)

    async def _asked_for(self, address: str, since_s: float, until_s: float) -> Sequence[Pod]:
        if self._waiters.ended:
            return ()
        looking = asyncio.ensure_future(self._fresh.read(since_s))
        try:
            await wait_at_most(until_s - self._clock.monotonic_s(), asyncio.wait({looking}), self._clock)
            if not looking.done():
                return ()
            pods = looking.result()
        except PodIdentityError as error:
            log.warning("the API server cannot be asked for the pod at %s: %s", address, error)
            return ()
        finally:
            looking.cancel()
        return self._view.pods_at(address) or [pod for pod in pods if address in sending_addresses(pod)]


class FreshPods:
    """What a `PodReader` says, for many who ask: a call begins at most once in `SPACING_S`."""

    def __init__(self, reader: PodReader, clock: Clock) -> None:
        self._reader = reader
        self._clock = clock
        self._newest: asyncio.Task[Sequence[Pod]] | None = None
        self._began_s = -math.inf
        """When the newest call began; it may be yet to come."""

    async def read(self, since_s: float) -> Sequence[Pod]:
        """Return what a call says that began after *since_s* (monotonic). Raises what the reader raises."""
        if self._newest is None or self._began_s <= since_s:
            self._began_s = max(self._clock.monotonic_s(), self._began_s + SPACING_S)
            self._newest = asyncio.create_task(self._call(self._began_s), name="second look")
            self._newest.add_done_callback(take_note)
        return await asyncio.shield(self._newest)

    async def _call(self, at_s: float) -> Sequence[Pod]:
        await self._clock.sleep(at_s - self._clock.monotonic_s())
        return await self._reader.pods()

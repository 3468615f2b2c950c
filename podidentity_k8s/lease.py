"""One leader at a time, by a Lease of coordination.k8s.io.

With D the lease duration, and all times on monotonic clocks:

    a leader    renews each D/4; from 2D/3 after the last successful renewal *was sent* it no longer leads, and its
                work is cancelled
    a candidate takes over when it has seen no change for D

Whatever is lost or late on the way, the leader's 2D/3 begin before the candidate's D, so D/3 is left for the work to
end. The Lease's own times are for people: no clock is compared with another machine's.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from podidentity_core.errors import Conflict, NotFound, PodIdentityError
from podidentity_core.model import Key
from podidentity_core.ports import Clock, LeaderLock, Severity
from podidentity_k8s.api import KubeApi
from podidentity_k8s.backoff import Random
from podidentity_k8s.events import KubeEvents, Reference
from podidentity_k8s.predecessor import OriginalLeader
from podidentity_k8s.wire import WireLease

_log = logging.getLogger(__name__)

_GROUP_VERSION = "coordination.k8s.io/v1"


class LeaseLock:
    """The LeaderLock of a cluster: the Lease *namespace*/*name*, sought by *identity*.

    *api* should have neither a rate limit nor retries: a renewal must not wait, and the lock repeats by itself. Two
    processes that are configured with one identity still do not lead together: each adds digits of its own.
    """

    def __init__(
        self,
        api: KubeApi,
        *,
        namespace: str,
        name: str,
        identity: str,
        clock: Clock,
        random: Random,
        duration_s: float = 15.0,
        events: KubeEvents | None = None,
    ) -> None:
        self._api = api
        self._key = Key(namespace, name)
        self._collection = f"/apis/{_GROUP_VERSION}/namespaces/{namespace}/leases"
        self._path = f"{self._collection}/{name}"
        self._identity = identity
        self._holder = f"{identity}_{secrets.token_hex(4)}"
        self._clock = clock
        self._random = random
        self._duration_s = duration_s
        self._call_s = duration_s / 5
        self._events = events
        self._original = OriginalLeader(api, namespace=namespace, name=name, clock=clock)
        self._lease: dict[str, Any] = {}  # as last read or written while we hold it
        self._waited_for = ""
        self._seen = ("", 0.0)  # the version of another's lease, and since when it is unchanged
        self._held_until_s = float("-inf")

    def is_held(self) -> bool:
        """Whether this process leads: the last renewal is fresh enough."""
        return self._clock.monotonic_s() < self._held_until_s

    async def lead(self, work: Callable[[], Awaitable[None]]) -> None:
        """Campaign, work, and campaign again; for ever."""
        _log.info("initiating MIC Leader election")
        while True:
            await self._acquire()
            await self._work(work)

    async def _acquire(self) -> None:
        _log.info("attempting to acquire leader lease %s...", self._key)
        while True:
            try:
                if await self._try_to_acquire():
                    break
            except Conflict:
                _log.debug("another candidate was faster")
            except PodIdentityError as error:
                _log.warning("cannot acquire the leader lease %s: %s", self._key, error)
            await self._clock.sleep(self._duration_s / 10 * (1 + self._random()))
        _log.info("successfully acquired lease %s", self._key)
        self._announce("became leader")

    async def _try_to_acquire(self) -> bool:
        holder = await self._original.holder(timeout_s=self._call_s)
        if holder and holder != self._waited_for:
            _log.info("waiting: %s of aad-pod-identity 1.8 leads", holder)
        self._waited_for = holder
        if holder:
            return False
        asked_s = self._clock.monotonic_s()
        try:
            raw = await self._api.get(self._path, timeout_s=self._call_s)
        except NotFound:
            new = {
                "apiVersion": _GROUP_VERSION,
                "kind": "Lease",
                "metadata": {"namespace": self._key.namespace, "name": self._key.name},
                "spec": self._spec(self._holder, transitions=0),
            }
            self._take(await self._api.post(self._collection, new, timeout_s=self._call_s), asked_s)
            return True
        lease = WireLease.model_validate_json(raw)
        if not self._is_free(lease, asked_s):
            return False
        self._lease = json.loads(raw)
        before = lease.spec
        transitions = (before.transitions or 0) + (before.holder != self._holder)
        await self._write(self._spec(self._holder, transitions=transitions))
        return True

    def _is_free(self, lease: WireLease, asked_s: float) -> bool:
        """Whether nobody holds the Lease, or we do (our work has ended, but we could not say so), or it is dead."""
        if lease.spec.holder in ("", self._holder):
            return True
        version, since_s = self._seen
        if version != lease.metadata.resource_version:
            self._seen = (lease.metadata.resource_version, self._clock.monotonic_s())
            return False
        return asked_s - since_s >= max(self._duration_s, lease.spec.duration_s or 0)

    async def _work(self, work: Callable[[], Awaitable[None]]) -> None:
        working = asyncio.ensure_future(work())
        renewing = asyncio.create_task(self._renew_until_lost())
        try:
            await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            working.cancel()
            try:
                await asyncio.wait({working})  # renewing goes on until the work has ended
            finally:
                renewing.cancel()
            await asyncio.wait({renewing})
            self._held_until_s = float("-inf")
            await self._release()
        if not renewing.cancelled():
            renewing.result()
        if not working.cancelled():
            working.result()

    async def _renew_until_lost(self) -> None:
        while self.is_held():
            try:
                if holder := await self._original.holder(timeout_s=self._left_s()):
                    _log.warning("%s of aad-pod-identity 1.8 leads now", holder)
                    break
                await self._renew()
                pause_s = self._duration_s / 4
            except (Conflict, NotFound):
                if not await self._is_still_ours():
                    break
                pause_s = self._duration_s / 15
            except PodIdentityError as error:
                _log.warning("cannot renew the leader lease %s: %s", self._key, error)
                pause_s = self._duration_s / 15
            await self._clock.sleep(min(pause_s, self._left_s()))
        self._held_until_s = float("-inf")
        _log.error("lost leader lease")

    async def _renew(self) -> None:
        spec = self._lease["spec"]
        await self._write(self._spec(self._holder, transitions=spec["leaseTransitions"], acquired=spec["acquireTime"]))

    async def _is_still_ours(self) -> bool:
        """Read the Lease that is not as we left it: a renewal may have been stored although its answer was lost."""
        try:
            self._lease = json.loads(await self._api.get(self._path, timeout_s=self._left_s()))
        except NotFound:
            return False
        except PodIdentityError as error:
            _log.warning("cannot read the leader lease %s: %s", self._key, error)
            return self.is_held()
        return bool((self._lease.get("spec") or {}).get("holderIdentity") == self._holder)

    async def _release(self) -> None:
        """Let others lead at once, if the Lease is still ours; else, or if that fails, they wait for its end."""
        try:
            self._lease = json.loads(await self._api.get(self._path, timeout_s=self._call_s))
            spec = self._lease.get("spec") or {}
            if spec.get("holderIdentity") == self._holder:
                freed = self._spec("", transitions=spec["leaseTransitions"], acquired=spec["acquireTime"])
                await self._api.put(self._path, {**self._lease, "spec": freed}, timeout_s=self._call_s)
                self._announce("stopped leading")
        except PodIdentityError as error:
            _log.warning("cannot release the leader lease %s: %s", self._key, error)

    async def _write(self, spec: dict[str, Any]) -> None:
        sent_s = self._clock.monotonic_s()
        self._take(await self._api.put(self._path, {**self._lease, "spec": spec}, timeout_s=self._call_s), sent_s)

    def _take(self, stored: bytes, sent_s: float) -> None:
        self._lease = json.loads(stored)
        self._held_until_s = sent_s + self._duration_s * 2 / 3

    def _left_s(self) -> float:
        """How long a call may take: its usual limit, or less when the lead ends before."""
        return max(0.0, min(self._call_s, self._held_until_s - self._clock.monotonic_s()))

    def _spec(self, holder: str, *, transitions: int, acquired: str = "") -> dict[str, Any]:
        now_s = self._clock.wall_s()
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s)) + f".{int(now_s % 1 * 1e6):06d}Z"
        return {
            "holderIdentity": holder,
            "leaseDurationSeconds": max(1, math.ceil(self._duration_s)),
            "acquireTime": acquired or now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }

    def _announce(self, what: str) -> None:
        _log.info("%s %s", self._identity, what)
        if self._events is not None:
            uid = (self._lease.get("metadata") or {}).get("uid", "")
            about = Reference(_GROUP_VERSION, "Lease", self._key, uid)
            self._events.record(about, Severity.NORMAL, "LeaderElection", f"{self._identity} {what}")


if TYPE_CHECKING:
    _: type[LeaderLock] = LeaseLock

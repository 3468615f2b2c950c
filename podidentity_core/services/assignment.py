"""MIC's work: from what changes in the cluster to stored assignments and identities on hosts.

Two loops by key. A pod's turn (`pods.PodWorker`) writes its AzureAssignedIdentities; a host's turn
(`hosts.HostWorker`) changes the host. Each looks at the newest view, does what can be done now, and asks for the
other's turn for the rest. What is stored in the cluster is all the memory there is: after a crash at any point the
next turn goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from podidentity_core import events
from podidentity_core.model import Change, Identity, Key, Seen, Synced, Unusable
from podidentity_core.planning import Planner, PodPlan, Rules
from podidentity_core.ports import AssignmentStore, Clock, ClusterReader, EventSink, HostIdentities, LeaderLock, Meter
from podidentity_core.reasons import Explanation, Reason
from podidentity_core.resource_ids import Host
from podidentity_core.services.hosts import HostLimits, HostWorker
from podidentity_core.services.pods import PodTools, PodWorker
from podidentity_core.services.work_queue import WorkQueue
from podidentity_core.settling import WAITING
from podidentity_core.view import ClusterView

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AssignmentPorts:
    """What the work needs from outside."""

    cluster: ClusterReader
    store: AssignmentStore
    hosts: HostIdentities
    events: EventSink
    lock: LeaderLock
    clock: Clock
    meter: Meter
    chance: Callable[[], float]


@dataclass(frozen=True, slots=True)
class AssignmentSettings:
    """How the operator wants it. Intervals are in seconds; 0 switches that look off."""

    rules: Rules = Rules()
    limits: HostLimits = HostLimits()
    parallel_writes: int = 20
    resync_interval_s: float = 3600.0
    drift_interval_s: float = 180.0


class AssignmentService:
    """One term of work, from the first look at the cluster until it is cancelled. Make a new one for each term."""

    def __init__(self, ports: AssignmentPorts, settings: AssignmentSettings) -> None:
        self._ports = ports
        self._settings = settings
        self._view = ClusterView()
        self._planner = Planner(self._view, settings.rules)
        self._host_worker = HostWorker(
            self._view,
            self._planner,
            ports.hosts,
            ports.events,
            ports.lock,
            clock=ports.clock,
            meter=ports.meter,
            chance=ports.chance,
            limits=settings.limits,
            changed=self._wake_pods,
        )
        tools = PodTools(ports.store, ports.events, ports.clock, ports.meter, self._ask_host, self._plan)
        self._pod_worker = PodWorker(self._view, self._planner, self._host_worker, tools)
        self._pod_turns: WorkQueue[Key] = WorkQueue(
            self._pod_worker.turn,
            clock=ports.clock,
            chance=ports.chance,
            parallel=settings.parallel_writes,
            can_wait=lambda pod: _only_removes(self._planner.pod_plan(pod)),
        )
        self._host_turns: WorkQueue[Host] = WorkQueue(
            self._host_turn, clock=ports.clock, chance=ports.chance, parallel=1000, patient=True
        )
        self._waiting_since_s: dict[Key, float] = {}
        self._explained: dict[Key, tuple[Explanation, ...]] = {}
        self._skipped: Counter[str] = Counter()
        self._seen_on: dict[Host, Hashable] = {}

    async def run(self) -> None:
        """Work, until cancelled. Raises what the cluster's iterator raises."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._pod_turns.run())
            group.create_task(self._host_turns.run())
            if self._settings.resync_interval_s > 0:
                group.create_task(self._every(self._settings.resync_interval_s, self._plan_everything))
            if self._settings.drift_interval_s > 0:
                group.create_task(self._every(self._settings.drift_interval_s, self._look_at_hosts))

    async def _follow(self) -> None:
        async for batch in self._ports.cluster.changes():
            self._take_in(batch)

    async def _every(self, interval_s: float, act: Callable[[], None]) -> None:
        while True:
            await self._ports.clock.sleep(interval_s)
            act()

    def _take_in(self, batch: Sequence[Change]) -> None:
        was_synced = self._view.synced
        concerned: set[Key] = set()
        for change in batch:
            self._forgive(change)
            concerned |= self._view.apply(change)
            if isinstance(change, Unusable):
                log.error("%s", change.explanation)
            elif isinstance(change, Synced):
                self._pod_worker.inherit(self._view.assignments.values())
                log.info("pod cache synchronized")
        if not self._view.synced:
            return
        self._plan(concerned if was_synced else self._view.concerned_pods())

    def _forgive(self, change: Change) -> None:
        """Let an identity that was refused be tried again at once when somebody has edited its AzureIdentity."""
        if not isinstance(change, Seen) or not isinstance(change.thing, Identity):
            return
        before = self._view.identities.get(change.thing.key)
        resource = change.thing.host_resource
        if before is None or resource is None or before.resource_version == change.thing.resource_version:
            return
        for host in self._host_worker.forgive(resource):
            self._host_turns.add(host)

    def _plan_everything(self) -> None:
        if self._view.synced:
            self._plan(self._view.concerned_pods())

    def _look_at_hosts(self) -> None:
        for host in self._host_worker.doubt():
            self._host_turns.add(host)

    def _plan(self, pods: Iterable[Key]) -> None:
        concerned = tuple(pods)
        self._planner.refresh(concerned)
        for pod in concerned:
            plan = self._planner.pod_plan(pod)
            self._explain(pod, plan.skipped)
            self._time(pod, plan)
            if _has_work(plan):
                self._pod_turns.add(pod)

    def _explain(self, pod: Key, skipped: tuple[Explanation, ...]) -> None:
        """Log why a pod lacks an identity, once for each new reason."""
        if self._explained.get(pod, ()) == skipped:
            return
        before = self._explained.pop(pod, ())
        if skipped:
            self._explained[pod] = skipped
        for explanation in skipped:
            log.info("%s", explanation)
            if explanation not in before and explanation.reason not in _NO_NEWS and pod in self._view.pods:
                self._ports.events.publish(events.skipped(self._view.pods[pod], explanation))
        for explanations, step in ((before, -1), (skipped, 1)):
            for code in {explanation.code for explanation in explanations}:
                self._skipped[code] += step
                self._ports.meter.gauge("mic_skipped_pods", self._skipped[code], reason=code)

    def _time(self, pod: Key, plan: PodPlan) -> None:
        """Measure how long a pod waits for its identities."""
        now_s = self._ports.clock.monotonic_s()
        if plan.create or plan.update or any(kept.state in WAITING for kept in plan.keep):
            self._waiting_since_s.setdefault(pod, now_s)
            return
        began_s = self._waiting_since_s.pop(pod, None)
        if began_s is not None and plan.keep:
            self._ports.meter.observe("mic_assignment_duration_seconds", now_s - began_s)

    def measure(self) -> None:
        """Set the gauges that go with time: how many assignments wait for each host, and since when."""
        now_s = self._ports.clock.monotonic_s()
        for host in self._planner.hosts():
            plans = [(pod, self._planner.pod_plan(pod)) for pod in self._planner.pods_on(host)]
            waiting = [pod for pod, plan in plans for kept in plan.keep if kept.state in WAITING]
            first_s = min((self._waiting_since_s.get(pod, now_s) for pod in waiting), default=now_s)
            self._ports.meter.gauge("mic_waiting_assignments", len(waiting), host=host.name)
            self._ports.meter.gauge("mic_waiting_seconds", now_s - first_s, host=host.name)

    def _ask_host(self, host: Host) -> None:
        self._host_turns.add(host)

    async def _host_turn(self, host: Host) -> float | None:
        try:
            return await self._host_worker.settle(host)
        finally:
            self._wake_pods(host)

    def _wake_pods(self, host: Host) -> None:
        """Give their turn to pods that need not wait for *host* any longer, if anything has changed for them there.

        Otherwise a pod whose writes fail, and which waits for the host as well, would go round with it for ever; and
        each of a thousand pods that come at once would have all the others looked at.
        """
        record, reconsidered = self._host_worker.record(host), self._planner.take_reconsidered(host)
        now = (record.usable, record.sure, record.changing, self._host_worker.troubles(host))
        before, self._seen_on[host] = self._seen_on.get(host), now
        for pod in self._planner.pods_on(host) if now != before else reconsidered:
            if self._pod_worker.can_go_on(self._planner.pod_plan(pod)):
                self._pod_turns.add(pod)


_NO_NEWS = (Reason.NOT_SCHEDULED, Reason.POD_FINISHED)
"""Reasons that are no fault of anybody's."""


def _only_removes(plan: PodPlan) -> bool:
    return not (plan.create or plan.update or plan.keep)


def _has_work(plan: PodPlan) -> bool:
    return bool(plan.create or plan.update or plan.delete) or any(kept.state in WAITING for kept in plan.keep)

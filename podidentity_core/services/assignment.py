"""MIC's work: from what changes in the cluster to stored assignments and identities on hosts.

Two loops by key. A pod's turn writes its AzureAssignedIdentities; a host's turn (`hosts.HostWorker`) changes the
host. Each looks at the newest view, does what can be done now, and asks for the other's turn for the rest. What is
stored in the cluster is all the memory there is: after a crash at any point the next turn goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from podidentity_core import events
from podidentity_core.errors import NotFound, PodIdentityError
from podidentity_core.matching import bounded_name
from podidentity_core.model import Assignment, AssignmentState, Change, Key, Seen, Synced, Unusable
from podidentity_core.planning import Planner, PodPlan, Rules, Update
from podidentity_core.ports import AssignmentStore, Clock, ClusterReader, EventSink, HostIdentities, LeaderLock, Meter
from podidentity_core.reasons import Explanation
from podidentity_core.resource_ids import Host, IdentityResource
from podidentity_core.services.hosts import HostLimits, HostWorker
from podidentity_core.services.work_queue import WorkQueue
from podidentity_core.settling import HostRecord, Next, next_for_unwanted, next_for_wanted
from podidentity_core.view import ClusterView

log = logging.getLogger(__name__)

T = TypeVar("T")


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
        )
        self._pod_turns: WorkQueue[Key] = WorkQueue(
            self._pod_turn, clock=ports.clock, chance=ports.chance, parallel=settings.parallel_writes
        )
        self._host_turns: WorkQueue[Host] = WorkQueue(
            self._host_turn, clock=ports.clock, chance=ports.chance, parallel=1000, patient=True
        )
        self._explained: dict[Key, tuple[Explanation, ...]] = {}
        self._seen_on: dict[Host, tuple[frozenset[IdentityResource] | None, int]] = {}

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
            concerned |= self._view.apply(change)
            if isinstance(change, Unusable):
                log.error("%s", change.explanation)
            elif isinstance(change, Synced):
                log.info("pod cache synchronized")
        if not self._view.synced:
            return
        self._plan(concerned if was_synced else self._view.concerned_pods())

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
            if _has_work(plan):
                self._pod_turns.add(pod)

    def _explain(self, pod: Key, skipped: tuple[Explanation, ...]) -> None:
        """Log why a pod lacks an identity, once for each new reason."""
        if self._explained.get(pod, ()) == skipped:
            return
        for explanation in skipped:
            log.info("%s", explanation)
        if skipped:
            self._explained[pod] = skipped
        else:
            self._explained.pop(pod, None)

    async def _host_turn(self, host: Host) -> float | None:
        try:
            return await self._host_worker.settle(host)
        finally:
            self._wake_pods(host)

    def _wake_pods(self, host: Host) -> None:
        """Give their turn to pods that need not wait for *host* any longer, if anything has changed there.

        Otherwise a pod whose writes fail, and which waits for the host as well, would go round with it for ever.
        """
        now = (self._host_worker.record(host).usable, self._planner.revision(host))
        if self._seen_on.get(host) == now:
            return
        self._seen_on[host] = now
        for pod in self._planner.pods_on(host):
            if self._can_go_on(self._planner.pod_plan(pod)):
                self._pod_turns.add(pod)

    def _can_go_on(self, plan: PodPlan) -> bool:
        """Whether some assignment of a pod need not wait for its host any longer."""
        planned = (*plan.create, *(update.wanted for update in plan.update))
        return (
            any(self._may_be_stored(wanted) for wanted in planned)
            or any(self._next_for_wanted(kept) is Next.ASSIGN for kept in plan.keep)
            or any(self._next_for_unwanted(assignment) is Next.RELEASE for assignment in plan.delete)
        )

    def _next_for_wanted(self, assignment: Assignment) -> Next:
        record = self._record(assignment)
        return next_for_wanted(assignment, record.usable if record else None)

    def _may_be_stored(self, wanted: Assignment) -> bool:
        """Whether it is known who put the identity on the host; afterwards nobody could tell."""
        record = self._record(wanted)
        return record is None or wanted.identity.host_resource is None or record.usable is not None

    def _next_for_unwanted(self, assignment: Assignment) -> Next:
        host = self._view.host_of(assignment)
        if host is None:
            return Next.RELEASE
        return next_for_unwanted(assignment, self._host_worker.needs(host), self._host_worker.record(host).perhaps_on)

    def _record(self, assignment: Assignment) -> HostRecord | None:
        host = self._view.host_of(assignment)
        return self._host_worker.record(host) if host is not None else None

    def _in_first_state(self, wanted: Assignment) -> Assignment:
        """*wanted* as it is first stored: usable at once if its host has the identity already."""
        ready = self._next_for_wanted(replace(wanted, state=AssignmentState.CREATED)) is Next.ASSIGN
        state = AssignmentState.ASSIGNED if ready else AssignmentState.CREATED
        return replace(
            wanted,
            state=state,
            preexisting=wanted.preexisting or self._is_foreign(wanted),
            host=self._view.host(wanted.node),
        )

    async def _pod_turn(self, pod: Key) -> None:
        """Do for one pod what can be done now. One failure does not stop the rest; the first is raised at the end."""
        plan = self._planner.pod_plan(pod)
        going = {assignment.key: assignment for assignment in plan.delete}
        steps = [
            *(partial(self._create, wanted, going.pop(wanted.key, None)) for wanted in plan.create),
            *(partial(self._update, update) for update in plan.update),
            *(partial(self._keep, assignment) for assignment in plan.keep),
            *(partial(self._let_go, assignment) for assignment in going.values()),
        ]
        failure: PodIdentityError | None = None
        for step in steps:
            try:
                await step()
            except PodIdentityError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    async def _create(self, wanted: Assignment, deleted: Assignment | None) -> None:
        """Store *wanted*, in the place of *deleted*, which somebody removes by hand although it is needed."""
        if not self._may_be_stored(wanted):
            self._ask_host(wanted)
            return
        if deleted is not None:
            await self._remember(deleted)
            await self._release(deleted)
        new = self._in_first_state(wanted)
        log.info("creating assigned id %s", new.key)
        try:
            stored = await self._timed("assigned_identity_addition", self._ports.store.create(new))
        except PodIdentityError as error:
            self._ports.events.publish(events.create_failed(new, str(error)))
            raise
        self._stored(stored)

    async def _update(self, update: Update) -> None:
        if not self._may_be_stored(update.wanted):
            self._ask_host(update.wanted)
            return
        if self._leaves_something(update):
            await self._remember(update.stored)
        new = self._in_first_state(update.wanted)
        log.info("updating assigned id %s", new.key)
        try:
            call = self._ports.store.update(update.stored, new)
            stored = await self._timed("assigned_identity_update", call)
        except PodIdentityError as error:
            self._ports.events.publish(events.update_failed(new, str(error)))
            raise
        self._stored(stored)

    def _leaves_something(self, update: Update) -> bool:
        """Whether an update makes an identity superfluous on its host."""
        old, new = update.stored, update.wanted
        same_host = self._view.host_of(old) == self._view.host_of(new)
        same_place = same_host and old.identity.host_resource == new.identity.host_resource
        return not same_place and self._next_for_unwanted(old) is not Next.RELEASE

    async def _remember(self, assignment: Assignment) -> None:
        """Store that the identity of *assignment* may be on its host because of us, before *assignment* goes.

        Without that record a crash in between would leave it there for ever. It is an assignment that nobody wants,
        in a state that NMI does not serve; it ends like any other.
        """
        name = bounded_name(f"{assignment.name}-leaving-{assignment.resource_version}")
        leaving = replace(
            assignment,
            name=name,
            state=AssignmentState.UNASSIGNED,
            uid="",
            resource_version="",
            deleting=False,
            origin=None,
        )
        if leaving.key not in self._view.assignments:
            self._note(await self._ports.store.create(leaving))

    async def _keep(self, assignment: Assignment) -> None:
        match self._next_for_wanted(assignment):
            case Next.ASSIGN:
                self._stored(await self._set_state(assignment, AssignmentState.ASSIGNED))
            case Next.WAIT:
                self._ask_host(assignment)

    async def _let_go(self, assignment: Assignment) -> None:
        if self._next_for_unwanted(assignment) is Next.WAIT:
            self._ask_host(assignment)
            return
        await self._release(assignment)
        if not self._view.has_node(assignment.node):
            self._ports.events.publish(events.removed(assignment))

    async def _release(self, assignment: Assignment) -> None:
        try:
            if assignment.state is not AssignmentState.UNASSIGNED:
                assignment = await self._set_state(assignment, AssignmentState.UNASSIGNED)
                self._note(assignment)
            await self._timed("assigned_identity_deletion", self._ports.store.delete(assignment))
        except NotFound:
            pass
        except PodIdentityError as error:
            self._ports.events.publish(events.remove_failed(assignment, str(error)))
            raise
        log.info("deleted assigned identity %s", assignment.key)
        self._plan(self._view.mark_deleted(assignment))

    async def _set_state(self, assignment: Assignment, state: AssignmentState) -> Assignment:
        log.info("updating AzureAssignedIdentity %s status to %s", assignment.key, state.value)
        try:
            return await self._ports.store.set_state(assignment, state)
        except NotFound:
            raise  # it went by itself, which is no error of anybody's
        except PodIdentityError as error:
            self._ports.meter.count(
                "kubernetes_api_operations_errors_count", operation_type="update_azure_assigned_identity_status"
            )
            self._ports.events.publish(events.state_failed(assignment, state, str(error)))
            raise

    def _stored(self, assignment: Assignment) -> None:
        """Note what a write has made of a wanted assignment; tell the user, and whoever waited for it on the host."""
        self._note(assignment)
        if assignment.state is AssignmentState.ASSIGNED:
            self._ports.events.publish(events.applied(assignment))
        self._ask_host(assignment)

    def _note(self, assignment: Assignment) -> None:
        """See an own write at once, and not only when the watch reports it."""
        self._planner.refresh(self._view.apply(Seen(assignment)))

    def _ask_host(self, assignment: Assignment) -> None:
        if (host := self._view.host_of(assignment)) is not None:
            self._host_turns.add(host)

    def _is_foreign(self, assignment: Assignment) -> bool:
        record, resource = self._record(assignment), assignment.identity.host_resource
        return record is not None and resource is not None and resource in record.foreign

    async def _timed(self, operation: str, call: Awaitable[T]) -> T:
        begin_s = self._ports.clock.monotonic_s()
        try:
            result = await call
        except PodIdentityError:
            self._ports.meter.count("kubernetes_api_operations_errors_count", operation_type=operation)
            raise
        self._ports.meter.observe(f"{operation}_duration_seconds", self._ports.clock.monotonic_s() - begin_s)
        self._ports.meter.count(f"{operation}_count")
        return result


def _has_work(plan: PodPlan) -> bool:
    waiting = (AssignmentState.CREATED, AssignmentState.UNASSIGNED)
    return bool(plan.create or plan.update or plan.delete) or any(a.state in waiting for a in plan.keep)

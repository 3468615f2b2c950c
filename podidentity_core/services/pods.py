"""One pod at a time: what is stored about it, in the order of additions, changes and removals.

Source: aad-pod-identity pkg/mic/mic.go:1037-1283, where all pods of a host went through each step together.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from podidentity_core import events
from podidentity_core.errors import Conflict, NotFound, PodIdentityError
from podidentity_core.matching import bounded_name
from podidentity_core.model import Assignment, AssignmentState, Key, Seen
from podidentity_core.planning import Planner, PodPlan, Update
from podidentity_core.ports import AssignmentStore, Clock, EventSink, Meter
from podidentity_core.reasons import Explanation
from podidentity_core.resource_ids import Host
from podidentity_core.services.hosts import HostWorker
from podidentity_core.settling import WAITING, HostRecord, Next, next_for_unwanted, next_for_wanted
from podidentity_core.view import ClusterView

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PodTools:
    """What a pod's turn needs from outside, and whom it tells: *ask_host* for a host's turn, *replan* for pods'."""

    store: AssignmentStore
    events: EventSink
    clock: Clock
    meter: Meter
    ask_host: Callable[[Host], None]
    replan: Callable[[Iterable[Key]], None]


class PodWorker:
    """Brings the stored assignments of pods in line with the plan. Call `turn` for one pod at a time."""

    def __init__(self, view: ClusterView, planner: Planner, hosts: HostWorker, tools: PodTools) -> None:
        self._view = view
        self._planner = planner
        self._hosts = hosts
        self._tools = tools
        self._inherited: frozenset[str] = frozenset()

    def inherit(self, assignments: Iterable[Assignment]) -> None:
        """A former leader has stored *assignments*; what it asked of Azure for those on their way may still arrive."""
        settled = (AssignmentState.ASSIGNED, AssignmentState.UNKNOWN)
        self._inherited = frozenset(assignment.uid for assignment in assignments if assignment.state not in settled)

    async def turn(self, pod: Key) -> None:
        """Do for one pod what can be done now. One failure does not stop the rest; the first is raised at the end.

        A step that is no longer planned is left out: while another one waited, the pod may have been planned anew.

        Raises:
            PodIdentityError: a write failed; the object that it was about has got an event.
        """
        plan = self._planner.pod_plan(pod)
        going = {assignment.key: assignment for assignment in plan.delete}
        steps = [
            *(("create", wanted, partial(self._create, wanted, going.pop(wanted.key, None))) for wanted in plan.create),
            *(("update", update, partial(self._update, update)) for update in plan.update),
            *(("keep", kept, partial(self._keep, kept)) for kept in plan.keep),
            *(("delete", assignment, partial(self._let_go, assignment)) for assignment in going.values()),
        ]
        failure: PodIdentityError | None = None
        for part, item, step in steps:
            if item not in getattr(self._planner.pod_plan(pod), part):
                continue
            try:
                await step()
            except PodIdentityError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def can_go_on(self, plan: PodPlan) -> bool:
        """Whether some assignment of a pod need not wait for its host any longer."""
        planned = (*plan.create, *(update.wanted for update in plan.update))
        return (
            any(self._may_be_stored(wanted) for wanted in planned)
            or any(self._next_for_wanted(kept) is Next.ASSIGN for kept in plan.keep)
            or any(self._next_for_unwanted(assignment) is Next.RELEASE for assignment in plan.delete)
            or any(self._news_of(assignment) for assignment in (*plan.keep, *plan.delete))
        )

    def _news_of(self, assignment: Assignment) -> Explanation | None:
        """Why a stored assignment waits for its host, if that is known and not noted at it."""
        if assignment.state not in WAITING:
            return None
        why = self._hosts.why(assignment)
        return why if why is not None and not assignment.reason.startswith(why.code) else None

    async def _explain(self, assignment: Assignment) -> None:
        if (why := self._news_of(assignment)) is not None:
            reason = f"{why.code}: {why.message}; {why.reason.remedy}"
            self._note(await self._tools.store.explain(assignment, reason, self._tools.clock.wall_s()))

    def _next_for_wanted(self, assignment: Assignment) -> Next:
        record = self._record(assignment)
        return next_for_wanted(assignment, record.usable if record else None)

    def _may_be_stored(self, wanted: Assignment) -> bool:
        """Whether it is known who put the identity on the host; afterwards nobody could tell."""
        record = self._record(wanted)
        return record is None or wanted.identity.host_resource is None or record.usable is not None

    async def _waits_for_host(self, wanted: Assignment, stored: Assignment | None) -> bool:
        """Whether *wanted* may not be stored yet; then its host is asked for a turn, after which it may.

        The host may not answer for hours, and meanwhile the pod must not go on with what *stored*, the predecessor,
        gives it and *wanted* does not.
        """
        if self._may_be_stored(wanted):
            return False
        self._ask_host(wanted)
        if stored is not None and stored.identity != wanted.identity and stored.state is not AssignmentState.UNASSIGNED:
            self._note(await self._set_state(stored, AssignmentState.UNASSIGNED))
        return True

    def _next_for_unwanted(self, assignment: Assignment) -> Next:
        host = self._view.host_of(assignment)
        if host is None:
            return Next.RELEASE
        record = self._hosts.record(host)
        perhaps_on = record.perhaps_on if record.sure or assignment.uid not in self._inherited else None
        return next_for_unwanted(assignment, self._hosts.needs(host), perhaps_on)

    def _record(self, assignment: Assignment) -> HostRecord | None:
        host = self._view.host_of(assignment)
        return self._hosts.record(host) if host is not None else None

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

    async def _create(self, wanted: Assignment, deleted: Assignment | None) -> None:
        """Store *wanted*, in the place of *deleted*, which somebody removes by hand although it is needed."""
        if await self._waits_for_host(wanted, deleted):
            return
        if deleted is not None:
            await self._remember(deleted)
            await self._release(deleted)
            if await self._waits_for_host(wanted, None):
                return
        new = self._in_first_state(wanted)
        log.info("creating assigned id %s", new.key)
        try:
            stored = await self._timed("assigned_identity_addition", self._tools.store.create(new))
        except PodIdentityError as error:
            if isinstance(error, Conflict):
                self._tools.replan((new.pod,))  # its name is another pod's by now, or ours: an answer was lost
            self._tools.events.publish(events.create_failed(new, str(error)))
            raise
        self._stored(stored)

    async def _update(self, update: Update) -> None:
        if await self._waits_for_host(update.wanted, update.stored):
            return
        if self._leaves_something(update):
            await self._remember(update.stored)
            if await self._waits_for_host(update.wanted, update.stored):
                return
        new = self._in_first_state(update.wanted)
        log.info("updating assigned id %s", new.key)
        self._planner.refresh(self._view.doubt(update.stored))
        try:
            call = self._tools.store.update(update.stored, new)
            stored = await self._timed("assigned_identity_update", call)
        except PodIdentityError as error:
            if isinstance(error, NotFound):
                self._tools.replan(self._view.mark_deleted(update.stored))
            self._tools.events.publish(events.update_failed(new, str(error)))
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
            reason="",
            origin=None,
        )
        if leaving.key not in self._view.assignments:
            self._note(await self._tools.store.create(leaving))

    async def _keep(self, assignment: Assignment) -> None:
        match self._next_for_wanted(assignment):
            case Next.ASSIGN:
                self._stored(await self._set_state(assignment, AssignmentState.ASSIGNED))
            case Next.WAIT:
                self._ask_host(assignment)
                await self._explain(assignment)

    async def _let_go(self, assignment: Assignment) -> None:
        if self._next_for_unwanted(assignment) is Next.WAIT:
            self._ask_host(assignment)
            if assignment.state is not AssignmentState.UNASSIGNED:
                # Its pod may still run: NMI must stop serving it now, and not only when the host has been written.
                self._note(await self._set_state(assignment, AssignmentState.UNASSIGNED))
            else:
                await self._explain(assignment)
            return
        await self._release(assignment)
        if not self._view.has_node(assignment.node):
            self._tools.events.publish(events.removed(assignment))

    async def _release(self, assignment: Assignment) -> None:
        try:
            if assignment.state is not AssignmentState.UNASSIGNED:
                assignment = await self._set_state(assignment, AssignmentState.UNASSIGNED)
                self._note(assignment)
                if assignment not in self._planner.pod_plan(assignment.pod).delete:
                    return
            await self._timed("assigned_identity_deletion", self._tools.store.delete(assignment))
        except NotFound:
            pass
        except PodIdentityError as error:
            self._tools.events.publish(events.remove_failed(assignment, str(error)))
            raise
        log.info("deleted assigned identity %s", assignment.key)
        self._tools.replan(self._view.mark_deleted(assignment))

    async def _set_state(self, assignment: Assignment, state: AssignmentState) -> Assignment:
        log.info("updating AzureAssignedIdentity %s status to %s", assignment.key, state.value)
        try:
            return await self._tools.store.set_state(assignment, state)
        except NotFound:
            self._tools.replan(self._view.mark_deleted(assignment))
            raise  # it went by itself, which is no error of anybody's
        except PodIdentityError as error:
            self._tools.meter.count(
                "kubernetes_api_operations_errors_count", operation_type="update_azure_assigned_identity_status"
            )
            self._tools.events.publish(events.state_failed(assignment, state, str(error)))
            raise

    def _stored(self, assignment: Assignment) -> None:
        """Note what a write has made of a wanted assignment; tell the user, and whoever waited for it on the host."""
        self._note(assignment)
        if assignment.state is AssignmentState.ASSIGNED:
            self._tools.events.publish(events.applied(assignment))
        self._ask_host(assignment)

    def _note(self, assignment: Assignment) -> None:
        """See an own write at once, and not only when the watch reports it."""
        self._tools.replan(self._view.apply(Seen(assignment)))

    def _ask_host(self, assignment: Assignment) -> None:
        if (host := self._view.host_of(assignment)) is not None:
            self._tools.ask_host(host)

    def _is_foreign(self, assignment: Assignment) -> bool:
        record, resource = self._record(assignment), assignment.identity.host_resource
        return record is not None and resource is not None and resource in record.foreign

    async def _timed(self, operation: str, call: Awaitable[T]) -> T:
        begin_s = self._tools.clock.monotonic_s()
        try:
            result = await call
        except PodIdentityError:
            self._tools.meter.count("kubernetes_api_operations_errors_count", operation_type=operation)
            raise
        self._tools.meter.observe(f"{operation}_duration_seconds", self._tools.clock.monotonic_s() - begin_s)
        self._tools.meter.count(f"{operation}_count")
        return result

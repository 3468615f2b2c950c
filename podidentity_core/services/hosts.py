"""One host at a time: read what it carries, ask for one change, and note what pods there can use from now on.

Source: aad-pod-identity pkg/mic/mic.go:1037-1193 and 1359-1471 (drift). There one loop did this for all hosts in
lock-step; here each host has its own turn, and drift is not a case of its own: whoever forgets what a host carried
looks again, and whatever is needed and missing is added.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace

from podidentity_core import events
from podidentity_core.errors import Conflict, IdentitiesRefused, NotFound, PodIdentityError, Throttled
from podidentity_core.model import Assignment, Key
from podidentity_core.planning import HostNeeds, Planner
from podidentity_core.ports import Clock, EventSink, HostIdentities, LeaderLock, Meter
from podidentity_core.reasons import Explanation, Reason, because
from podidentity_core.resource_ids import Host, IdentityResource
from podidentity_core.services.refusals import Halving, Refusals
from podidentity_core.services.work_queue import Backoff
from podidentity_core.settling import WAITING, HostChange, HostRecord, host_change
from podidentity_core.view import ClusterView

log = logging.getLogger(__name__)

GATHER_S = 1.0
"""The longest wait for assignments that are about to be stored and bring identities that are new on the host: a second
write for these would cost seconds, up to minutes, and Azure's patience.
"""
PASSING = 3
"""So many failures in a row may pass by themselves: only then is it noted at assignments that their host fails, or told
to anybody that it wants us to wait, or that somebody else has written it just before us.
"""
RETELL_S = 600.0
"""How often users hear of the same trouble of a host: a thousand pods may wait for it, and it is asked each minute."""
NEXT_ROUND_S = 15.0
"""When to go on after a round in which Azure refused one identity after another: a host bears 4 writes a minute."""


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What a host is spared. Seconds.

    *grace_s*: an identity that nobody needs any more stays so long, since it is often needed again at once; and after
    so long in a term nothing arrives any more that a former leader has asked of Azure before it died. *retries*
    more writes follow without delay when some identities were refused; a refused one itself waits out *quarantine*,
    of which five tries fit into the first hour.
    """

    grace_s: float = 0.0
    retries: int = 2
    retry_interval_s: float = 1.0
    quarantine: Backoff = Backoff(first_s=90.0, most_s=3600.0, factor=3.0)


@dataclass(slots=True)
class _HostDesk:
    refusals: Refusals
    record: HostRecord = field(default_factory=HostRecord)
    stay_until_s: dict[IdentityResource, float] = field(default_factory=dict)
    decided_s: float = 0.0
    """When it was last decided what to write: whose time ends later has still to be looked at, even if it has ended."""
    gathering_since_s: float | None = None
    failures: int = 0
    problem: str = ""
    told_s: dict[Key, float] = field(default_factory=dict)


class HostWorker:
    """Brings hosts in line with what their assignments need. Call `settle` for one host at a time."""

    def __init__(
        self,
        view: ClusterView,
        planner: Planner,
        hosts: HostIdentities,
        sink: EventSink,
        lock: LeaderLock,
        *,
        clock: Clock,
        meter: Meter,
        chance: Callable[[], float],
        limits: HostLimits,
        changed: Callable[[Host], None],
    ) -> None:
        self._view = view
        self._planner = planner
        self._hosts = hosts
        self._events = sink
        self._lock = lock
        self._clock = clock
        self._meter = meter
        self._chance = chance
        self._limits = limits
        self._changed = changed  # told after each write: who waited for it need not wait for the next
        self._desks: dict[Host, _HostDesk] = {}
        self._began_s = clock.monotonic_s()

    def record(self, host: Host) -> HostRecord:
        """What is known of *host*."""
        return self._desk(host).record

    def needs(self, host: Host) -> HostNeeds:
        """What the assignments say about *host*."""
        return self._planner.host_needs(host)

    def doubt(self) -> tuple[Host, ...]:
        """Look at every host again before the next change; returns the hosts that assignments have a say about."""
        hosts = self._planner.hosts()
        self._desks = {host: self._desk(host) for host in hosts}
        for desk in self._desks.values():
            desk.record.stale = True
        return hosts

    async def settle(self, host: Host) -> float | None:
        """Make one round for *host*; returns when to look again, if a refused identity waits for that.

        Raises:
            PodIdentityError: when the host could not be read or changed; its assignments have got their events.
        """
        desk = self._desk(host)
        try:
            if desk.record.stale or (not desk.record.sure and self._is_sure):
                await self._learn(host, desk)
            if (gather_s := self._gather_s(host, desk)) > 0:
                return gather_s
            finished = await self._change(host, desk)
        except PodIdentityError as error:
            if isinstance(error, NotFound):
                desk.record.learn(frozenset(), frozenset())
            desk.failures += 1
            lasts = desk.failures > PASSING
            if lasts:
                desk.problem = str(error)
            if lasts or not isinstance(error, Conflict | Throttled):
                self._report(self._untold(host, desk), error, Reason.HOST_FAILS)
            raise
        desk.failures, desk.problem = 0, ""
        desk.told_s.clear()
        return self._next_look_s(host, desk) if finished else NEXT_ROUND_S

    def _gather_s(self, host: Host, desk: _HostDesk) -> float:
        """How long to wait for assignments that are about to be stored, so that one write serves them all.

        Whoever stores one asks for the host's turn again, which ends the wait.
        """
        now_s = self._clock.monotonic_s()
        needs = self._planner.host_needs(host)
        if not needs.planned - needs.needed:
            desk.gathering_since_s = None
            return 0.0
        if desk.gathering_since_s is None:
            desk.gathering_since_s = now_s
        return desk.gathering_since_s + GATHER_S - now_s

    def _desk(self, host: Host) -> _HostDesk:
        if host not in self._desks:
            self._desks[host] = _HostDesk(Refusals(self._limits.quarantine, self._clock, self._chance))
        return self._desks[host]

    async def _learn(self, host: Host, desk: _HostDesk) -> None:
        sure = self._is_sure
        state = await self._hosts.attached(host)
        claimed = frozenset(
            assignment.identity.host_resource
            for pod in self._planner.pods_on(host)
            for assignment in self._view.assignments_of(pod)
            if assignment.identity.host_resource is not None
            and not assignment.preexisting
            and self._view.host_of(assignment) == host
        )
        desk.record.keep(self._planner.host_needs(host).kept)  # before the assignments that say so can be gone
        desk.record.learn(state.attached, claimed, sure=sure)

    @property
    def _sure_s(self) -> float:
        """From when on a look at a host shows all that a former leader had asked for."""
        return self._began_s + self._limits.grace_s

    @property
    def _is_sure(self) -> bool:
        return self._clock.monotonic_s() >= self._sure_s

    async def _change(self, host: Host, desk: _HostDesk) -> bool:
        """Write until nothing is left to write but what Azure refuses; False if that does not succeed in one round.

        What changes while a write is under way, such as a pod that comes back while its identity leaves, is the next
        write's affair.
        """
        refusals = 0
        halving = Halving()
        former = HostChange()
        while (change := halving.part(self._wanted_change(host, desk))) and self._lock.is_held():
            if change == former or refusals > self._limits.retries:
                return False
            counts = len(change.add), len(change.remove)
            log.info("updating user-assigned identities on %s, assign [%d], unassign [%d]", host.name, *counts)
            try:
                await self._write(host, desk, change)
                self._changed(host)
                former = change
                halving.accept()
            except IdentitiesRefused as error:
                blamed = _named(change, error) or halving.blame(change, self._wanted_change(host, desk))
                if blamed:
                    self._quarantine(host, desk, blamed, error)
                    refusals += 1
                if refusals <= self._limits.retries and self._wanted_change(host, desk):
                    await self._clock.sleep(self._limits.retry_interval_s)  # then all is looked at anew
        return True

    def _wanted_change(self, host: Host, desk: _HostDesk) -> HostChange:
        needs, record = self._planner.host_needs(host), desk.record
        record.keep(needs.kept)
        desk.decided_s = self._clock.monotonic_s()
        if record.usable is None:
            return HostChange()
        change = host_change(needs, record.usable, ours=record.ours, refused=desk.refusals.at(desk.decided_s))
        return replace(change, remove=self._after_grace(desk, change.remove))

    def _after_grace(self, desk: _HostDesk, leaving: frozenset[IdentityResource]) -> frozenset[IdentityResource]:
        """Those of *leaving* that nobody has needed for long enough."""
        known, until_s = desk.stay_until_s, desk.decided_s + self._limits.grace_s
        desk.stay_until_s = {resource: known.get(resource, until_s) for resource in leaving}
        return frozenset(resource for resource, until_s in desk.stay_until_s.items() if desk.decided_s >= until_s)

    async def _write(self, host: Host, desk: _HostDesk, change: HostChange) -> None:
        desk.record.begin(change)
        began_s = self._clock.monotonic_s()
        try:
            state = await self._hosts.change(host, add=change.add, remove=change.remove)
        except IdentitiesRefused:
            desk.record.refuse(change)
            raise
        except BaseException:
            desk.record.forget()
            raise
        desk.record.end(state.attached)
        desk.gathering_since_s = None
        self._meter.observe("mic_cycle_duration_seconds", self._clock.monotonic_s() - began_s)
        self._meter.count("mic_cycle_count")
        desk.refusals.forget(change.add | change.remove)

    def _quarantine(
        self, host: Host, desk: _HostDesk, blamed: frozenset[IdentityResource], error: IdentitiesRefused
    ) -> None:
        """Set the refused identities aside, so that the others get their turn."""
        log.warning("removing %s from ID list since it is erroneous", ", ".join(sorted(map(str, blamed))))
        desk.refusals.add(blamed, str(error))
        self._report(self._waiting(host, blamed.__contains__), error, Reason.HOST_REFUSES)

    def why(self, assignment: Assignment) -> Explanation | None:
        """Why *assignment* waits for its host; None if there is nothing but that it takes its time."""
        host, resource = self._view.host_of(assignment), assignment.identity.host_resource
        if host is None or resource is None or host not in self._desks:
            return None
        desk = self._desks[host]
        if refused := desk.refusals.why(resource):
            name = str(assignment.identity.key)
            return because(Reason.HOST_REFUSES, identity=name, host=host.name, problem=refused)
        return because(Reason.HOST_FAILS, host=host.name, problem=desk.problem) if desk.problem else None

    def troubles(self, host: Host) -> Hashable:
        """A value that changes whenever `why` says something else about some assignment there."""
        desk = self._desk(host)
        return bool(desk.problem), frozenset(desk.refusals.at(self._clock.monotonic_s()))

    def forgive(self, resource: IdentityResource) -> tuple[Host, ...]:
        """Let *resource* be tried again at once, since its AzureIdentity was edited; returns the hosts concerned."""
        return tuple(host for host, desk in self._desks.items() if desk.refusals.forget((resource,)))

    def _next_look_s(self, host: Host, desk: _HostDesk) -> float | None:
        """When the first refused identity may be tried again, or the first superfluous one leave, or all is certain."""
        needs = self._planner.host_needs(host)
        desk.refusals.keep(needs.needed | needs.leaving, desk.decided_s)
        self._meter.gauge("mic_quarantined_identities", len(desk.refusals), host=host.name)
        ends_s = [*desk.refusals.ends_s(), *(end_s for end_s in desk.stay_until_s.values() if end_s > desk.decided_s)]
        if needs.leaving and not desk.record.sure:
            ends_s.append(max(self._sure_s, desk.decided_s + 0.1))
        return max(0.0, min(ends_s) - self._clock.monotonic_s()) if ends_s else None

    def _waiting(self, host: Host, concerns: Callable[[IdentityResource], bool]) -> Iterable[Assignment]:
        """Assignments on *host*, stored or planned, that wait for an identity in question."""
        for pod in self._planner.pods_on(host):
            plan = self._planner.pod_plan(pod)
            for assignment in (*plan.keep, *plan.create):
                resource = assignment.identity.host_resource
                waits = assignment.state in WAITING
                if waits and resource is not None and concerns(resource) and self._view.host_of(assignment) == host:
                    yield assignment

    def _untold(self, host: Host, desk: _HostDesk) -> Iterable[Assignment]:
        """Assignments that wait for *host*, and whose users have not lately been told of its trouble."""
        now_s = self._clock.monotonic_s()
        for assignment in self._waiting(host, lambda _: True):
            if now_s - desk.told_s.get(assignment.key, -RETELL_S) >= RETELL_S:
                desk.told_s[assignment.key] = now_s
                yield assignment

    def _report(self, assignments: Iterable[Assignment], error: PodIdentityError, reason: Reason) -> None:
        """Tell at each binding what the host said, with the code under which the documentation explains it."""
        problem = f"{error} ({reason.code}: {reason.remedy})"
        for assignment in assignments:
            self._events.publish(events.apply_failed(assignment, problem))
            if (pod := self._view.pods.get(assignment.pod)) is not None:
                self._events.publish(events.not_assigned(pod, f"{assignment.identity.key}: {problem}"))


def _named(change: HostChange, error: IdentitiesRefused) -> frozenset[IdentityResource]:
    """The identities of *change* that the error names, without regard to letter case."""
    refused = {text.lower() for text in error.resource_ids}
    return frozenset(resource for resource in change.add | change.remove if resource.key in refused)

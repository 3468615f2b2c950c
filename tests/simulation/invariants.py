"""What must hold at each moment, and what in the end."""

from __future__ import annotations

from podidentity_core.model import Assignment, AssignmentState, Identity
from podidentity_core.resource_ids import Host, IdentityResource
from tests.simulation.flaky import LATEST_S, Call, Network, Term
from tests.simulation.world import World, letters

DRIFT_S = 180.0
UNNOTICED_S = 2 * DRIFT_S + 60.0
"""So long MIC may take to see what somebody else did to a host, while the network is bad."""
MOMENT_S = 0.01
"""Longer than it takes, by a restless clock, until what has happened is on its way to MIC."""
SERVED = (AssignmentState.ASSIGNED, AssignmentState.UNKNOWN)


class Invariants:
    """Looks on while MIC works; *violations* has what should not have been."""

    def __init__(self, world: World, network: Network) -> None:
        self.violations: list[str] = []
        self.late_writes = 0
        self._world = world
        self._network = network
        self._read_s: dict[Host, float] = {}
        self._served_in_vain: dict[tuple[str, Identity], float] = {}

    def say(self, text: str) -> None:
        self.violations.append(f"at {self._world.now_s:.2f}: {text}")

    # At each moment

    def on_change_sent(self, call: Call, host: Host, remove: frozenset[IdentityResource]) -> None:
        """MIC leads when it writes, removes nothing that it knows to be needed, and nothing that it did not add."""
        world = self._world
        if not call.term.lock.is_held():
            self.say(f"a write to {host.name} without the lead")
        knows_s = call.term.knows_until_s(call.sent_s)
        for need, since_s in world.needs.items():
            if need.host == host and need.what in remove and since_s + MOMENT_S < knows_s:
                self.say(f"{need.what} leaves {host.name}, and MIC knows that {need.pod} needs it since {since_s:.2f}")
        others = world.immutable | {
            what for what in world.foreign.get(host, set()) if (host, what) not in world.unclear
        }
        if taken := remove & others:
            self.say(f"{letters(taken)} leaves {host.name}, and was not MIC's")

    def on_change_arrived(
        self, call: Call, host: Host, add: frozenset[IdentityResource], remove: frozenset[IdentityResource]
    ) -> None:
        """A write of which its sender knows nothing any more may come after the next look at the host."""
        world = self._world
        world.note(f"ARM {host.name}: add {letters(add)}, remove {letters(remove)} (term {call.term.number})")
        if call.abandoned_s is not None:
            world.disturb(host)
            if self._read_s.get(host, -1.0) >= call.abandoned_s:
                self.late_writes += 1
                world.note("  which nobody expects any more")
                for what in add:
                    world.unclear[host, what] = "late write"
        for stored in world.cluster.assignments.values():
            mine = stored.identity.host_resource
            if stored.preexisting and mine in add and world.host_of(stored) == host:
                world.unclear[host, mine] = "added though it is noted as somebody else's"

    def on_read(self, host: Host) -> None:
        self._read_s[host] = self._world.now_s

    def on_stored(self, call: Call, stored: Assignment, before: Assignment | None) -> None:
        """`Assigned` means that the pod can use it."""
        if before is not None and (call.unanswered or call.abandoned_s is not None):
            self._world.lost_updates.append((self._world.now_s, before))
        world, what, host = self._world, stored.identity.host_resource, stored.host
        world.note(f"API {stored.name} {stored.state.value} on {stored.node} (term {call.term.number})")
        if stored.state is not AssignmentState.ASSIGNED or what is None or host is None or host not in world.foreign:
            return
        if call.term.ended or call.abandoned_s is not None:
            return  # its sender may have changed its mind
        since_s = min(
            (
                since
                for need, since in world.needs.items()
                if (need.pod, need.host, need.what) == (stored.pod, host, what)
            ),
            default=world.now_s,
        )
        quiet_s = world.now_s - world.disturbed_s.get(host, -1e9)
        if since_s < call.sent_s and quiet_s > UNNOTICED_S and what not in world.hosts.usable(host):
            self.say(f"{stored.name} is Assigned before {what} can be used on {host.name}")

    def after_step(self, term: Term | None) -> None:
        """What a pod may not use any more is not served to it."""
        world, now_s = self._world, self._world.now_s
        wanted = {(need.assignment, need.pod, need.identity) for need in world.needs}
        in_vain = {
            (stored.uid, stored.identity): stored
            for stored in world.cluster.assignments.values()
            if stored.state in SERVED and (stored.key, stored.pod, stored.identity) not in wanted
        }
        self._served_in_vain = {one: self._served_in_vain.get(one, now_s) for one in in_vain}
        if term is None or not term.synced:
            return
        for one, since_s in self._served_in_vain.items():
            knows_s = term.knows_until_s(now_s)
            calm_s = now_s - max(since_s, term.began_s + 3 * LATEST_S, self._network.failed_s + 70.0)
            if knows_s > since_s and calm_s > 40 + self._network.lag_s:
                self.say(f"{in_vain[one].name} is served though it was revoked at {since_s:.2f}")

    # In the end

    def check_end(self) -> None:
        self._check_assignments()
        for host in self._world.foreign:
            self._check_host(host)

    def _check_assignments(self) -> None:
        stored = self._world.cluster.assignments
        wanted = {need.assignment: need for need in self._world.needs}
        left, missing = stored.keys() - wanted.keys(), wanted.keys() - stored.keys()
        if left or missing:
            self.say(
                f"stored but not wanted: {sorted(map(str, left))}, wanted but not stored: {sorted(map(str, missing))}"
            )
            return
        for key, need in wanted.items():
            found = stored[key]
            said = (found.pod, found.node, found.identity, found.binding)
            if said != (need.pod, need.node, need.identity, need.binding):
                self.say(f"{key} says {said}")
            if found.state not in SERVED or found.deleting:
                self.say(f"{key} is {found.state}, deleting: {found.deleting}")

    def _check_host(self, host: Host) -> None:
        world = self._world
        needed = {need.what for need in world.needs if need.host == host and need.what is not None}
        listed = world.hosts.listed(host)
        unclear = {what for where, what in world.unclear if where == host}
        may = needed | world.foreign[host] | world.immutable
        must = needed | (world.foreign[host] - unclear)
        for what in listed - may:
            if what in unclear:
                world.left_behind[world.unclear[host, what]] += 1
        if not must <= listed <= may | unclear:
            self.say(
                f"{host.name} carries {letters(listed)}, needs {letters(needed)}, of others "
                f"{letters(world.foreign[host])}, unclear {letters(unclear)}"
            )
        if not world.hosts.has_system_assigned(host):
            self.say(f"{host.name} has lost its system-assigned identity")

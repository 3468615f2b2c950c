"""What an assignment may do next, given what is known of its host; and what the host must be asked to change.

    wanted  state                identity on the host     next
    yes     Assigned, none       any                      nothing (a missing identity is the host's affair)
    yes     Created, Unassigned  not needed there, or on  ASSIGN
    yes     Created, Unassigned  off, or not known        WAIT for the host
    no      any                  must stay, or off        RELEASE: the object goes
    no      any                  on, or not known         WAIT for the host

An identity must stay when another assignment needs it on this host, or when it is kept. It is "on" a host only when
the write that put it there has ended: Azure shows it earlier than the node's metadata service serves it.

Source: aad-pod-identity pkg/mic/mic.go:690-735, 1037-1246, without its defects 7 and 8 (an assignment in `Unassigned`
was never assigned again; one in `Created` never left the host).
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from enum import Enum, auto

from podidentity_core.model import Assignment, AssignmentState
from podidentity_core.planning import HostNeeds
from podidentity_core.resource_ids import IdentityResource

WAITING = (AssignmentState.CREATED, AssignmentState.UNASSIGNED)
"""States of an assignment that is not served: it waits for its host, or for its end."""


class Next(Enum):
    """What an assignment may do now."""

    NOTHING = auto()
    ASSIGN = auto()
    RELEASE = auto()
    WAIT = auto()


@dataclass(frozen=True, slots=True)
class HostChange:
    """One write to a host."""

    add: frozenset[IdentityResource] = frozenset()
    remove: frozenset[IdentityResource] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.add or self.remove)


@dataclass(slots=True)
class HostRecord:
    """What MIC knows of one host between two looks at it.

    *usable* are the identities that pods there can use; None while that is not known. *foreign* are those that
    somebody else put there: assignments that find theirs among them are marked, and never remove it. *ours* are the
    rest, but for *kept*, which stay for good. *changing* are those that a write under way adds or removes. *stale*:
    look again before the next change. *sure*: the last look showed all that a former leader had asked for.
    """

    usable: frozenset[IdentityResource] | None = None
    foreign: frozenset[IdentityResource] = frozenset()
    ours: frozenset[IdentityResource] = frozenset()
    kept: frozenset[IdentityResource] = frozenset()
    changing: frozenset[IdentityResource] = frozenset()
    stale: bool = True
    sure: bool = False

    @property
    def perhaps_on(self) -> frozenset[IdentityResource] | None:
        """What the host may carry at this moment; None when that may be anything."""
        return None if self.usable is None else self.usable | self.changing

    def learn(
        self, attached: frozenset[IdentityResource], claimed: Set[IdentityResource], *, sure: bool = True
    ) -> None:
        """Take in what the host carries. *claimed* are the identities that stored assignments say MIC put there."""
        self.ours = attached & (self.ours | claimed) - self.kept
        self.foreign = attached - self.ours
        self.usable = attached
        self.stale = False
        self.sure = sure

    def keep(self, kept: Set[IdentityResource]) -> None:
        """*kept* stay on the host for good, also when no assignment says so any more."""
        self.kept |= kept
        self.ours -= kept

    def begin(self, change: HostChange) -> None:
        """A write begins: what it removes may be unusable from now on, and what it adds is there because of us."""
        if self.usable is not None:
            self.usable -= change.remove
        self.ours |= change.add - self.kept
        self.changing = change.add | change.remove

    def refuse(self, change: HostChange) -> None:
        """The write was refused as a whole: nothing has changed."""
        if self.usable is not None:
            self.usable |= change.remove
        self.changing = frozenset()

    def end(self, attached: frozenset[IdentityResource]) -> None:
        """A write has ended, and the host carries *attached*."""
        self.ours &= attached
        self.foreign = attached - self.ours
        self.usable = attached
        self.changing = frozenset()

    def forget(self) -> None:
        """Nothing is certain any more, since the answer to a write was lost: look before the next step."""
        self.usable = None
        self.changing = frozenset()
        self.stale = True


def next_for_wanted(assignment: Assignment, usable: Set[IdentityResource] | None) -> Next:
    """What a wanted assignment may do. *usable*: what pods on its host can use, None if not known."""
    if assignment.state in (AssignmentState.ASSIGNED, AssignmentState.UNKNOWN):
        return Next.NOTHING
    resource = assignment.identity.host_resource
    if resource is None or (usable is not None and resource in usable):
        return Next.ASSIGN
    return Next.WAIT


def next_for_unwanted(
    assignment: Assignment, needs: HostNeeds | None, perhaps_on: Set[IdentityResource] | None
) -> Next:
    """What an assignment may do whose pod, binding or identity is gone.

    *needs* is None when the host is gone; *perhaps_on* is what it may carry, None if that is not known.
    """
    resource = assignment.identity.host_resource
    if resource is None or needs is None or resource in needs.needed or resource in needs.kept:
        return Next.RELEASE
    if resource in needs.planned:
        return Next.WAIT  # until the assignment that takes over is stored, somebody must remember the identity
    return Next.WAIT if perhaps_on is None or resource in perhaps_on else Next.RELEASE


def host_change(
    needs: HostNeeds,
    usable: Set[IdentityResource],
    *,
    ours: Set[IdentityResource] = frozenset(),
    refused: Set[IdentityResource] = frozenset(),
) -> HostChange:
    """What one write must do to the host.

    What leaves is what assignments say, and what is known to be there because of MIC (*ours*) although no assignment
    says so any more: one that was deleted while the host was being changed for it. *refused* are identities that Azure
    has just refused there. Nothing is added for an assignment that is only planned: after a crash nobody would know
    whose it was.
    """
    leaving = (needs.leaving | ours) - needs.needed - needs.planned - needs.kept
    return HostChange(add=needs.needed - usable - refused, remove=(leaving & usable) - refused)

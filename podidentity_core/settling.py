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
from dataclasses import dataclass, field
from enum import Enum, auto

from podidentity_core.model import Assignment, AssignmentState, Key
from podidentity_core.planning import HostNeeds
from podidentity_core.resource_ids import IdentityResource


class Next(Enum):
    """What an assignment may do now."""

    NOTHING = auto()
    ASSIGN = auto()
    RELEASE = auto()
    WAIT = auto()


@dataclass(slots=True)
class HostRecord:
    """What MIC knows of one host between two looks at it.

    *usable* are the identities that pods there can use; None until the host was read. *foreign* are those that
    somebody else put there: assignments that find theirs among them are marked, and never remove it. *undecided* are
    assignments that were stored before anybody knew whether theirs was there already.
    """

    usable: frozenset[IdentityResource] | None = None
    foreign: frozenset[IdentityResource] = field(default_factory=frozenset)
    undecided: set[Key] = field(default_factory=set)

    def learn(self, attached: frozenset[IdentityResource], ours: Set[IdentityResource]) -> None:
        """Take in what the host carries. *ours* are the identities that stored assignments say MIC put there."""
        news = attached - (self.usable or frozenset())
        self.foreign = ((self.foreign | news) & attached) - ours
        self.usable = attached

    def begin(self, remove: Set[IdentityResource]) -> None:
        """A write begins: what it removes may be unusable from now on."""
        if self.usable is not None:
            self.usable -= remove

    def end(self, attached: frozenset[IdentityResource], added: Set[IdentityResource]) -> None:
        """A write has ended, and the host carries *attached*; *added* are there because of us."""
        self.foreign = (self.foreign & attached) - added
        self.usable = attached

    def forget(self) -> None:
        """Nothing is certain any more, e.g. because the answer to a write was lost: look before the next step."""
        self.usable = None


@dataclass(frozen=True, slots=True)
class HostChange:
    """One write to a host."""

    add: frozenset[IdentityResource] = frozenset()
    remove: frozenset[IdentityResource] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.add or self.remove)


def next_for_wanted(assignment: Assignment, usable: Set[IdentityResource] | None) -> Next:
    """What a wanted assignment may do. *usable*: what pods on its host can use, None if not known."""
    if assignment.state in (AssignmentState.ASSIGNED, AssignmentState.UNKNOWN):
        return Next.NOTHING
    resource = assignment.identity.host_resource
    if resource is None or (usable is not None and resource in usable):
        return Next.ASSIGN
    return Next.WAIT


def next_for_unwanted(assignment: Assignment, needs: HostNeeds | None, usable: Set[IdentityResource] | None) -> Next:
    """What an assignment may do whose pod, binding or identity is gone. *needs* is None when the host is gone."""
    resource = assignment.identity.host_resource
    if resource is None or needs is None or not _may_leave(resource, needs):
        return Next.RELEASE
    return Next.WAIT if usable is None or resource in usable else Next.RELEASE


def host_change(
    needs: HostNeeds, usable: Set[IdentityResource], *, refused: Set[IdentityResource] = frozenset()
) -> HostChange:
    """What one write must do to the host. *refused* are identities that Azure has just refused there."""
    leaving = frozenset(resource for resource in needs.leaving if _may_leave(resource, needs))
    return HostChange(add=needs.needed - usable - refused, remove=leaving & usable)


def _may_leave(resource: IdentityResource, needs: HostNeeds) -> bool:
    return resource not in needs.needed and resource not in needs.kept

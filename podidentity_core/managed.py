"""Managed mode: nobody writes assignments, so NMI works out which ones there would be.

The rules are MIC's own (`matching`), always namespaced; what a binding gives counts as assigned, since in this mode
somebody else has put the identities on the node. Source: aad-pod-identity pkg/nmi/managed.go, pkg/crd/crd.go:734.
"""

from __future__ import annotations

from collections.abc import Iterable

from podidentity_core.matching import matches
from podidentity_core.model import Assignment, AssignmentState, Gone, Key, Pod, Seen, Unusable
from podidentity_core.view import ClusterView


class ManagedAssignments:
    """The identities and bindings of the cluster, and what follows from them for a pod."""

    def __init__(self) -> None:
        self._view = ClusterView()
        self._known: dict[Key, tuple[Pod, tuple[Assignment, ...]]] = {}

    def apply(self, change: Seen | Gone | Unusable) -> None:
        """Take in a change of an AzureIdentity or an AzureIdentityBinding."""
        self._known.clear()
        self._view.apply(change)

    def of(self, pod: Pod) -> Iterable[Assignment]:
        """Return what *pod* may use."""
        if not self._view.bindings:
            return ()
        known = self._known.get(pod.key)
        if known is None or known[0] is not pod:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            known = self._known[pod.key] = (pod, self._worked_out(pod))
        return known[1]

    def _worked_out(self, pod: Pod) -> tuple[Assignment, ...]:
        found = matches(pod, self._view.bindings_by_selector, self._view.identities, namespaced=True).found
        return tuple(
            Assignment(
                namespace=match.assignment.namespace,
                name=match.assignment.name,
                pod=pod.key,
                node=pod.node,
                identity=match.identity,
                binding=match.binding,
                state=AssignmentState.ASSIGNED,
            )
            for match in found
        )


_MOST_KNOWN = 1024
"""More pods than any node has; pods that came and went are forgotten with the rest."""

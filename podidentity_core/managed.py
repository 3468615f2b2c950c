"""Managed mode: nobody writes assignments, so NMI works out which ones there would be.

The rules are MIC's own (`matching`), always namespaced; what a binding gives counts as assigned, since in this mode
somebody else has put the identities on the node. Source: aad-pod-identity pkg/nmi/managed.go, pkg/crd/crd.go:734.
"""

from __future__ import annotations

from collections.abc import Iterable

from podidentity_core.matching import matches
from podidentity_core.model import Assignment, AssignmentState, Binding, Identity, Key, Pod


class ManagedAssignments:
    """The identities and bindings of the cluster, and what follows from them for a pod."""

    def __init__(self) -> None:
        self._identities: dict[Key, Identity] = {}
        self._bindings: dict[Key, Binding] = {}
        self._by_selector: dict[str, tuple[Binding, ...]] = {}
        self._known: dict[Key, tuple[Pod, tuple[Assignment, ...]]] = {}

    def identity(self, key: Key, new: Identity | None) -> None:
        """Note that the AzureIdentity *key* is *new* from now on; None: it is gone."""
        self._known.clear()
        self._identities.pop(key, None)
        if new is not None:
            self._identities[key] = new

    def binding(self, key: Key, new: Binding | None) -> None:
        """Note that the AzureIdentityBinding *key* is *new* from now on; None: it is gone."""
        self._known.clear()
        old = self._bindings.pop(key, None)
        if new is not None:
            self._bindings[key] = new
        for selector in {binding.selector for binding in (old, new) if binding is not None}:
            group = (binding for binding in self._bindings.values() if binding.selector == selector)
            self._by_selector[selector] = tuple(sorted(group, key=lambda binding: binding.key))
            if not self._by_selector[selector]:
                del self._by_selector[selector]

    def of(self, pod: Pod) -> Iterable[Assignment]:
        """Return what *pod* may use."""
        if not self._bindings:
            return ()
        known = self._known.get(pod.key)
        if known is None or known[0] is not pod:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            known = self._known[pod.key] = (pod, self._worked_out(pod))
        return known[1]

    def _worked_out(self, pod: Pod) -> tuple[Assignment, ...]:
        found = matches(pod, self._by_selector, self._identities, namespaced=True).found
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

"""The Events that users look for: the original's reasons and messages, on objects of their true kinds.

Source: aad-pod-identity pkg/mic/mic.go (the lines are named at each). There the kind of an event's object was
`v1.AzureIdentityBinding`, so `kubectl describe` never showed it.
"""

from __future__ import annotations

from podidentity_core.model import Assignment, AssignmentState, Binding, Pod
from podidentity_core.ports import Event, Severity
from podidentity_core.reasons import Explanation


def applied(assignment: Assignment) -> Event:
    """The identity can be used (mic.go:1214)."""
    message = f"Binding {assignment.binding.name} applied on node {assignment.node} for pod {assignment.name}"
    return _on_binding(assignment, Severity.NORMAL, "binding applied", message)


def apply_failed(assignment: Assignment, problem: str) -> Event:
    """The host has not got the identity (mic.go:1127)."""
    message = (
        f"failed to apply binding {assignment.binding.key} node {assignment.node} "
        f"for pod {assignment.pod}, error: {problem}"
    )
    return _on_binding(assignment, Severity.WARNING, "binding apply error", message)


def not_assigned(pod: Pod, problem: str) -> Event:
    """The same, at the pod that waits for it. The original told pods nothing."""
    return Event(Pod, pod.key, pod.uid, Severity.WARNING, _NOT_ASSIGNED, problem)


def skipped(pod: Pod, explanation: Explanation) -> Event:
    """The pod lacks an identity, for a reason that its owner can do something about."""
    return Event(Pod, pod.key, pod.uid, Severity.WARNING, _NOT_ASSIGNED, str(explanation))


_NOT_ASSIGNED = "AzureIdentityNotAssigned"


def create_failed(assignment: Assignment, problem: str) -> Event:
    """The API server did not take the assignment (mic.go:1066)."""
    message = f"failed to create AzureAssignedIdentity {assignment.key} for pod {assignment.pod}, error: {problem}"
    return _on_binding(assignment, Severity.WARNING, "binding apply error", message)


def update_failed(assignment: Assignment, problem: str) -> Event:
    """The API server did not take the changed assignment (mic.go:1090)."""
    message = f"failed to update AzureAssignedIdentity {assignment.key} for pod {assignment.pod}, error: {problem}"
    return _on_binding(assignment, Severity.WARNING, "binding apply error", message)


def removed(assignment: Assignment) -> Event:
    """The assignment went with its node (mic.go:1280)."""
    message = f"Binding {assignment.binding.name} removed from node {assignment.node} for pod {assignment.pod.name}"
    return _on_binding(assignment, Severity.NORMAL, "binding removed", message)


def remove_failed(assignment: Assignment, problem: str) -> Event:
    """The identity or the assignment could not be removed (mic.go:1275)."""
    message = (
        f"failed to remove AzureIdentityBinding {assignment.binding.key} from node {assignment.node} "
        f"for pod {assignment.pod}, error: {problem}"
    )
    return _on_binding(assignment, Severity.WARNING, "binding remove error", message)


def state_failed(assignment: Assignment, state: AssignmentState, problem: str) -> Event:
    """The new state could not be stored (mic.go:1209)."""
    message = (
        f"failed to update AzureAssignedIdentity {assignment.key} status to {state.value} "
        f"for pod {assignment.pod}, error: {problem}"
    )
    return Event(Assignment, assignment.key, assignment.uid, Severity.WARNING, "status update error", message)


def _on_binding(assignment: Assignment, severity: Severity, reason: str, message: str) -> Event:
    binding = assignment.binding
    return Event(Binding, binding.key, binding.uid, severity, reason, message)

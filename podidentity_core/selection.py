"""Which identity answers a token request of a pod, and whether it is worth waiting for.

    assignments of the pod that fit the request             decision
    one in state Assigned, or without a state (old MIC)     serve it; of several, the first by name. One without a
                                                            client ID is broken: denied if nothing else is on its way
    only in state Created                                   wait, up to patience.created_s in all
    none                                                    wait, up to patience.absent_s in all

An assignment in `Unassigned` is on its way out and fits nothing. Source: aad-pod-identity pkg/nmi/standard.go:51-166,
with letter case ignored throughout (there the wait ignored it and the choice did not), and a fixed choice where the
original's was random.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from podidentity_core.model import Assignment, AssignmentState, ExceptionRule, Identity, Pod
from podidentity_core.reasons import Explanation, Reason, because
from podidentity_core.token_request import Selector, SelectorKind, TokenRequest


@dataclass(frozen=True, slots=True)
class Serve:
    """Answer with a token of *identity*."""

    identity: Identity


@dataclass(frozen=True, slots=True)
class Wait:
    """Decide again when the pod's assignments change, and at the latest in *seconds*."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Deny:
    """Answer with an error."""

    explanation: Explanation


Decision = Serve | Wait | Deny


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request may wait: for an assignment to appear, and for one to become usable. Seconds, in all."""

    absent_s: float = 80.0
    created_s: float = 100.0


_CODE_CHARS = len(Reason.HOST_FAILS.code)
_READY = (AssignmentState.ASSIGNED, AssignmentState.UNKNOWN)


def select(
    pod: Pod,
    assignments: Iterable[Assignment],
    request: TokenRequest,
    *,
    namespaced: bool,
    waited_s: float,
    patience: Patience,
) -> Decision:
    """Decide what answers *request* after it has waited for *waited_s*."""
    fitting = [
        assignment
        for assignment in assignments
        if assignment.state is not AssignmentState.UNASSIGNED
        and _serves_namespace(assignment.identity, pod, namespaced)
        and (request.selector is None or _is_named_by(assignment.identity, request.selector))
    ]
    ready = [assignment for assignment in fitting if assignment.state in _READY and assignment.identity.client_id]
    if ready:
        return Serve(min(ready, key=lambda assignment: assignment.key).identity)
    pending = [assignment for assignment in fitting if assignment.state not in _READY]
    broken = [assignment for assignment in fitting if assignment.state in _READY]
    left_s = (patience.created_s if pending else patience.absent_s) - waited_s
    if left_s > 0 and (pending or not broken):
        return Wait(left_s)
    if broken:
        return Deny(because(Reason.NO_CLIENT_ID, identity=str(min(broken, key=lambda one: one.key).identity.key)))
    if pending:
        # The code alone: what Azure has said names things that are no business of a pod's.
        codes = sorted({assignment.reason[:_CODE_CHARS] for assignment in pending if assignment.reason})
        noted = ", ".join(codes) or "nothing"
        return Deny(because(Reason.NOT_ASSIGNED_YET, pod=str(pod.key), waited_s=f"{waited_s:.0f}", noted=noted))
    return Deny(_why_not(pod, request))


def _serves_namespace(identity: Identity, pod: Pod, namespaced: bool) -> bool:
    return identity.namespace == pod.namespace or not (namespaced or identity.namespaced)


def _is_named_by(identity: Identity, selector: Selector) -> bool:
    match selector.kind:
        case SelectorKind.CLIENT_ID:
            return identity.client_id.lower() == selector.folded
        case SelectorKind.RESOURCE_ID:
            return identity.host_resource is not None and identity.host_resource.key == selector.folded
        case SelectorKind.OBJECT_ID:
            return False  # an AzureIdentity has no object ID; a wrong guess would hand out the wrong identity


def _why_not(pod: Pod, request: TokenRequest) -> Explanation:
    if request.selector is not None:
        return because(Reason.NO_SUCH_IDENTITY, pod=str(pod.key), selector=str(request.selector))
    return because(Reason.NO_IDENTITY, pod=str(pod.key))


_MIC_REPLICA_SET = re.compile(r"mic-[a-z0-9]{1,10}")


def is_excepted(pod: Pod, rules: Iterable[ExceptionRule], *, mic_namespace: str) -> bool:
    """Whether *pod* gets the node's own tokens: by a rule of its namespace, or because it is MIC itself.

    One label of a rule is enough; its value is compared without regard to case (pkg/pod/pod.go:99). MIC is the pod
    of a ReplicaSet that a Deployment named `mic` made, and not, as in the original, of any whose name begins so.
    """
    if pod.namespace.lower() == mic_namespace.lower() and _MIC_REPLICA_SET.fullmatch(pod.owner_replica_set):
        return True
    return any(
        key in pod.labels and pod.labels[key].lower() == value.lower()
        for rule in rules
        if rule.namespace == pod.namespace
        for key, value in rule.pod_labels.items()
    )

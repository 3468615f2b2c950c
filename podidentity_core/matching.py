"""Which identities a pod may use, through which binding, and why not.

Source: aad-pod-identity pkg/mic/mic.go:574, except that a finished pod gets nothing (there it kept its identity).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from podidentity_core.model import Binding, Identity, Key, Pod
from podidentity_core.reasons import Explanation, Reason, because


@dataclass(frozen=True, slots=True)
class Match:
    """*binding* gives *identity* to a pod; *assignment* is the name of the AzureAssignedIdentity that says so."""

    identity: Identity
    binding: Binding
    assignment: Key


@dataclass(frozen=True, slots=True)
class Matches:
    """What a pod may use, and what it may not for which reason; in the order of the bindings' namespaces and names."""

    found: tuple[Match, ...] = ()
    skipped: tuple[Explanation, ...] = ()


def matches(
    pod: Pod,
    bindings: Mapping[str, Sequence[Binding]],
    identities: Mapping[Key, Identity],
    *,
    namespaced: bool,
) -> Matches:
    """Match one pod.

    *bindings* are grouped by selector, and sorted by namespace and name within a group, so that the choice between
    two identities of one name is the same at each run. The selector is compared exactly, letter case included.
    """
    if (obstacle := _obstacle(pod)) is not None:
        return Matches(skipped=(obstacle,))
    candidates = bindings.get(pod.label or "", ())
    if not candidates:
        return Matches(skipped=(because(Reason.NO_BINDING, pod=str(pod.key), label=pod.label or ""),))
    found: dict[Key, Match] = {}
    skipped: list[Explanation] = []
    for binding in candidates:
        identity = _identity_for(pod, binding, identities, namespaced)
        if isinstance(identity, Explanation):
            skipped.append(identity)
            continue
        match = Match(identity, binding, assignment_key(pod.key, identity, namespaced=namespaced))
        first = found.setdefault(match.assignment, match)
        if first is not match and first.identity.key != identity.key:
            skipped.append(_name_taken(pod, identity, first.identity))
    return Matches(tuple(found.values()), tuple(skipped))


def _obstacle(pod: Pod) -> Explanation | None:
    if pod.label is None or pod.label == "":
        return because(Reason.EMPTY_LABEL, pod=str(pod.key))
    if not pod.node:
        return because(Reason.NOT_SCHEDULED, pod=str(pod.key))
    if pod.finished:
        return because(Reason.POD_FINISHED, pod=str(pod.key), phase=pod.phase.value)
    return None


def _identity_for(
    pod: Pod, binding: Binding, identities: Mapping[Key, Identity], namespaced: bool
) -> Identity | Explanation:
    identity = identities.get(binding.identity_key)
    if identity is None:
        return because(Reason.IDENTITY_MISSING, binding=str(binding.key), identity=str(binding.identity_key))
    if (namespaced or identity.namespaced) and pod.namespace != identity.namespace:
        return because(Reason.OTHER_NAMESPACE, binding=str(binding.key), identity=str(identity.key), pod=str(pod.key))
    return identity


def _name_taken(pod: Pod, identity: Identity, holder: Identity) -> Explanation:
    return because(Reason.NAME_TAKEN, pod=str(pod.key), identity=str(identity.key), holder=str(holder.key))


def _assignment_namespace(identity: Identity, namespaced: bool) -> str:
    """Where the assignment lives (pkg/mic/mic.go:879): `default`, unless something asks for namespaces."""
    return identity.namespace if namespaced or identity.namespaced else "default"


def assignment_key(pod: Key, identity: Identity, *, namespaced: bool) -> Key:
    """Name the assignment of *identity* to *pod*: `<pod>-<namespace>-<identity>` (pkg/mic/mic.go:935)."""
    name = bounded_name(f"{pod.name}-{pod.namespace}-{identity.name}")
    return Key(_assignment_namespace(identity, namespaced), name)


def bounded_name(name: str) -> str:
    """*name*, or its beginning and a digest if it is too long for an object's name (253 characters).

    Nobody reads the parts of an assignment's name: who it is for stands in its spec.
    """
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:10]
    return f"{name[: _LONGEST_NAME - 11].rstrip('-.')}-{digest}"


def other_name(name: Key, pod: Key) -> Key:
    """A name for *pod*'s assignment where another pod's has *name*: pod `a-b` of `c` and pod `a` of `b-c` share one."""
    digest = hashlib.sha256(f"{pod.namespace}/{pod.name}".encode()).hexdigest()[:10]
    return Key(name.namespace, bounded_name(f"{name.name}-{digest}"))


_LONGEST_NAME = 253

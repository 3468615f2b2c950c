"""The `identity` block of a VM or scale set: what it says, and the PATCH bodies that change it. Pure.

| left on the host           | system-assigned: no | system-assigned: yes           |
|----------------------------|---------------------|--------------------------------|
| some user-assigned         | `UserAssigned`      | `SystemAssigned, UserAssigned` |
| none                       | `None`              | `SystemAssigned`               |

Source: aad-pod-identity pkg/cloudprovider/identity.go:33, without its loss of a system-assigned identity.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from podidentity_core.resource_ids import IdentityResource, InvalidResourceId, parse_identity_resource

MAX_ENTRIES = 150
"""How many identities one PATCH may name. Source: aad-pod-identity pkg/cloudprovider/truncate.go:8."""

Block = Mapping[str, Any] | None
"""ARM's `identity` member; a host without any identity has none."""


def attached_identities(block: Block, *, only_settled: bool = False) -> frozenset[IdentityResource]:
    """Return the user-assigned identities that *block* lists, as ARM spells them.

    ARM lists an identity at once; its value is empty until the operation that puts it there has succeeded. Those are
    left out with *only_settled*.
    """
    return frozenset(resource for resource, value in _entries(block).items() if value or not only_settled)


def unsettled(block: Block, wanted: Collection[IdentityResource]) -> bool:
    """Whether some of *wanted* is listed, but not yet put on the host."""
    entries = _entries(block)
    return any(resource in entries and not entries[resource] for resource in wanted)


def identity_patches(
    block: Block, add: Collection[IdentityResource], remove: Collection[IdentityResource], *, renew: bool = False
) -> tuple[dict[str, Any], ...]:
    """Return the bodies that bring about what *add* and *remove* ask for, none if that is so already.

    An identity in both is added. Others are not mentioned, so ARM leaves them. Each body is right for what the ones
    before it leave behind; additions come first. Equal inputs give equal bodies. *renew*: an identity that is listed
    but was never put on the host, because the operation failed, is added again.
    """
    held = {resource.key: resource for resource in attached_identities(block)}
    there = {resource.key for resource in attached_identities(block, only_settled=renew)}
    wanted = {resource.key: resource for resource in add}
    unwanted = {resource.key for resource in remove} - wanted.keys()
    changes: list[tuple[IdentityResource, dict[str, Any] | None]] = [
        *((wanted[key], {}) for key in sorted(wanted.keys() - there)),
        *((held[key], None) for key in sorted(unwanted & held.keys())),
    ]
    left, bodies = {text.lower() for text in _listed(block)}, []
    for start in range(0, len(changes), MAX_ENTRIES):
        part = changes[start : start + MAX_ENTRIES]
        left = (left | {resource.key for resource, _ in part}) - {r.key for r, value in part if value is None}
        bodies.append(_body(block, {resource.text: value for resource, value in part} if left else None))
    return tuple(bodies)


def _body(block: Block, entries: Mapping[str, Any] | None) -> dict[str, Any]:
    """A type without UserAssigned must come alone: ARM refuses the map beside it, even an empty one."""
    kept = _other_types(block)
    if entries is None:
        return {"identity": {"type": ", ".join(kept) or "None"}}
    return {"identity": {"type": ", ".join([*kept, "UserAssigned"]), "userAssignedIdentities": dict(entries)}}


_SPELLING = {"systemassigned": "SystemAssigned"}


def _other_types(block: Block) -> list[str]:
    """The parts of the type that are not ours, in order: one that we do not know is kept as it is written."""
    parts = [part.strip() for part in str((block or {}).get("type") or "").split(",")]
    return [_SPELLING.get(p.lower(), p) for p in parts if p and p.lower() not in ("userassigned", "none")]


def _listed(block: Block) -> Mapping[str, Any]:
    return (block or {}).get("userAssignedIdentities") or {}


def _entries(block: Block) -> dict[IdentityResource, Any]:
    entries: dict[IdentityResource, Any] = {}
    for text, value in _listed(block).items():
        try:
            entries[parse_identity_resource(text)] = value
        except InvalidResourceId:
            continue  # nothing that an assignment could name, so nothing that we could add or remove
    return entries

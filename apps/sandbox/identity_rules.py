"""How ARM changes the identities of a host: the rules of a PATCH's `identity`, as functions on values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_USER_ASSIGNED_ID = re.compile(
    r"^/subscriptions/[^/]+/resourcegroups/[^/]+/providers/microsoft\.managedidentity/userassignedidentities/[^/]+$"
)
_TYPES = {"none": "None", "systemassigned": "SystemAssigned", "userassigned": "UserAssigned"}
REFUSALS = ("FailedIdentityOperation", "LinkedAuthorizationFailed", "Conflict")
"""How ARM can be told to refuse an identity."""


class ArmError(Exception):
    """A request that ARM refuses, with its HTTP status and error code."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """Return the error in ARM's shape."""
        return {"error": {"code": self.code, "message": str(self)}}


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """Whether a host has a system-assigned identity, and the user-assigned ones as they were written."""

    system: bool = False
    assigned: tuple[str, ...] = ()

    @property
    def type(self) -> str:
        """Return the type as ARM writes it in answers."""
        kinds = ["SystemAssigned"] * self.system + ["UserAssigned"] * bool(self.assigned)
        return ", ".join(kinds) or "None"

    @property
    def folded(self) -> frozenset[str]:
        """Return the assigned ids in lower case, for comparisons."""
        return frozenset(entry.lower() for entry in self.assigned)


def patched(current: HostIdentity, identity: Any, host_id: str, check: Callable[[Sequence[str]], None]) -> HostIdentity:
    """Return what the host shall have. Raises ArmError; *check* raises it for new ids that cannot be had."""
    kinds = _kinds(identity)
    entries = identity.get("userAssignedIdentities")
    if entries is not None and "UserAssigned" not in kinds:
        told = (
            "The request format was unexpected, a non-UserAssigned identity type should not contain: "
            "userAssignedIdentities"
        )
        raise failed_identity_operation(host_id, "BadRequest", told)
    if "UserAssigned" not in kinds:
        return HostIdentity("SystemAssigned" in kinds)
    kept = _merged(current, _checked_entries(entries or {}), check)
    if not kept:
        told = "The identity ids must not be null or empty for 'UserAssigned' identity type."
        raise ArmError(400, "MissingIdentityIds", told)
    return HostIdentity("SystemAssigned" in kinds, tuple(kept.values()))


def _kinds(identity: Any) -> set[str]:
    if not isinstance(identity, dict) or not isinstance(identity.get("type"), str):
        raise invalid_request("Required property 'type' not found in JSON. Path 'identity', line 1, position 1.")
    parts = [part.strip().lower() for part in identity["type"].split(",")]
    if unknown := [part for part in parts if part not in _TYPES]:
        raise invalid_request(f"Error converting value '{unknown[0]}' to type 'ResourceIdentityType'.")
    return {_TYPES[part] for part in parts}


def _checked_entries(entries: Any) -> Mapping[str, Any]:
    if not isinstance(entries, dict):
        raise invalid_request("Error converting 'identity.userAssignedIdentities' to a dictionary.")
    for entry, value in entries.items():
        if not entry.lower().startswith(("/subscriptions/", "/providers/")):
            told = (
                f"Property id '{entry}' at path '' is invalid. Expect fully qualified resource Id that start with "
                "'/subscriptions/{subscriptionId}' or '/providers/{resourceProviderNamespace}/'."
            )
            raise ArmError(400, "LinkedInvalidPropertyId", told)
        if not _USER_ASSIGNED_ID.match(entry.lower()):
            told = (
                f"The identity ids '{entry}' are invalid. It must be of the following format: "
                "'/subscriptions/{subscriptionId}/resourceGroups/{resourceGroupName}/providers/"
                "Microsoft.ManagedIdentity/userAssignedIdentities/{identityName}'"
            )
            raise ArmError(400, "InvalidIdentityId", told)
        if value not in (None, {}):
            told = f"The value of the identity '{entry}' is invalid: it must be null or an empty object."
            raise ArmError(400, "InvalidIdentityValues", told)
    return entries


def _merged(
    current: HostIdentity, entries: Mapping[str, Any], check: Callable[[Sequence[str]], None]
) -> dict[str, str]:
    check([entry for entry, value in entries.items() if value is not None])
    kept = {entry.lower(): entry for entry in current.assigned}
    for entry, value in entries.items():
        if value is None:
            kept.pop(entry.lower(), None)
        else:
            kept.setdefault(entry.lower(), entry)
    return kept


def invalid_request(why: str) -> ArmError:
    """The body cannot be read."""
    told = f"The request content was invalid and could not be deserialized: '{why}'."
    return ArmError(400, "InvalidRequestContent", told)


def failed_identity_operation(host_id: str, status: str, why: str) -> ArmError:
    """The identity service refused; its answer is quoted, with ids in lower case."""
    inner = f'{{"error":{{"code":"{status}","message":"{why}"}}}}'
    told = (
        f"Identity operation for resource '{host_id}' failed with error 'Failed to perform resource identity "
        f"operation. Status: '{status}'. Response: '{inner}'.'."
    )
    return ArmError(400, "FailedIdentityOperation", told)


def refusal(host_id: str, code: str, ids: Sequence[str], caller: str) -> ArmError:
    """Return how ARM refuses to assign *ids*; *code* is one of REFUSALS."""
    if code == "LinkedAuthorizationFailed":
        kind = host_id.split("/")[-2]
        scopes = ",".join(_lower_case(entry) for entry in ids)
        told = (
            f"The client '{caller}' with object id '{caller}' has permission to perform action "
            f"'Microsoft.Compute/{kind}/write' on scope '{host_id}'; however, it does not have permission to perform "
            "action 'Microsoft.ManagedIdentity/userAssignedIdentities/assign/action' on the linked scope(s) "
            f"'{scopes}' or the linked scope(s) are invalid."
        )
        return ArmError(403, code, told)
    if code == "Conflict":
        return failed_identity_operation(host_id, "Conflict", f"Resource '{ids[0].lower()}' is being changed.")
    return failed_identity_operation(host_id, "BadRequest", f"Resource '{ids[0].lower()}' was not found.")


def _lower_case(resource_id: str) -> str:
    """Return an id as this error shows it: all in lower case but the provider and type."""
    return resource_id.lower().replace(
        "/microsoft.managedidentity/userassignedidentities/",
        "/Microsoft.ManagedIdentity/userAssignedIdentities/",
    )

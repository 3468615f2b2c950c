"""The state of the sandbox's Azure: hosts, user-assigned identities, long-running operations."""

from __future__ import annotations

import asyncio
import base64
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from apps.sandbox.identity_rules import ArmError, HostIdentity, patched, refusal
from apps.sandbox.tokens import Principal

PREEMPTED = ("OperationPreempted", "Operation execution has been preempted by a more recent operation.")


@dataclass(frozen=True, slots=True)
class UserAssigned:
    """A user-assigned identity."""

    resource_id: str
    location: str
    tags: dict[str, str]
    principal: Principal


@dataclass(slots=True)
class Operation:
    """A long-running operation. *_at* are times of the loop's clock, *_wall* of the wall clock, in seconds.

    *reported_at* is when a poll was first told the end.
    """

    name: str
    host_id: str
    identity: HostIdentity
    secret: str = field(repr=False)
    started_at: float
    started_wall: float = field(default_factory=time.time)
    status: str = "InProgress"
    error: tuple[str, str] | None = None
    ended_at: float | None = None
    ended_wall: float | None = None
    reported_at: float | None = None
    polls: int = 0


@dataclass(slots=True)
class Host:
    """A VM or a scale set; *served* are the ids (lower case) that its IMDS gives tokens for."""

    resource_id: str
    location: str
    tenant_id: str
    identity: HostIdentity = field(default_factory=HostIdentity)
    served: frozenset[str] = frozenset()
    instances: list[str] = field(default_factory=list)  # of a scale set: instance ids
    computer_name: str = ""
    etag: int = 1
    state: str = "Succeeded"
    tags: dict[str, str] = field(default_factory=dict)
    unique_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    system: Principal | None = None
    operation: Operation | None = None

    @property
    def is_scale_set(self) -> bool:
        """Return whether this is a scale set."""
        return "/virtualmachinescalesets/" in self.resource_id.lower()


class Azure:
    """All resources, changed as ARM changes them: at once in ARM's answers, later in IMDS's.

    *operation_s* is how long an operation takes. Refused identities and failing operations are set by tests.
    """

    def __init__(self, tenant_id: str, operation_s: float = 2.0) -> None:
        self.tenant_id = tenant_id
        self.operation_s = operation_s
        self.hosts: dict[str, Host] = {}
        self.identities: dict[str, UserAssigned] = {}
        self.operations: list[Operation] = []
        self.refused: dict[str, str] = {}
        self._failures: list[tuple[str, str]] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def add_host(self, resource_id: str, location: str = "westeurope", computer_name: str = "") -> Host:
        """Create a VM or a scale set without identities; a second call returns the first's."""
        fresh = Host(resource_id, location, self.tenant_id, computer_name=computer_name)
        return self.hosts.setdefault(resource_id.lower(), fresh)

    def host(self, resource_id: str) -> Host:
        """Return a host, by an id in any case. Raises KeyError."""
        return self.hosts[resource_id.lower()]

    def add_identity(
        self, resource_id: str, location: str = "westeurope", tags: dict[str, str] | None = None
    ) -> UserAssigned:
        """Create a user-assigned identity, or change its tags; principal and client id stay once given."""
        held = self.identities.get(resource_id.lower())
        principal = (
            held.principal if held else Principal(self.tenant_id, str(uuid.uuid4()), str(uuid.uuid4()), resource_id)
        )
        made = UserAssigned(resource_id, location, tags or {}, principal)
        self.identities[resource_id.lower()] = made
        return made

    def attach(self, resource_id: str, identity_ids: Sequence[str] = (), *, system: bool = False) -> None:
        """Put identities on a host at once, as if somebody had done so long ago."""
        host = self.host(resource_id)
        held = {entry.lower(): entry for entry in (*host.identity.assigned, *identity_ids)}
        self._set_identity(host, HostIdentity(system or host.identity.system, tuple(held.values())))
        host.served = host.identity.folded

    def refuse(self, identity_id: str, code: str = "FailedIdentityOperation") -> None:
        """Refuse to assign an identity from now on; *code* is one of REFUSALS."""
        self.refused[identity_id.lower()] = code

    def accept(self, identity_id: str) -> None:
        """Undo *refuse*."""
        self.refused.pop(identity_id.lower(), None)

    def fail_next_operation(self, code: str = "InternalOperationError", message: str = "") -> None:
        """Let the next operation that ends by itself end as Failed."""
        self._failures.append((code, message or "An internal error occurred in the operation."))

    def change(self, host: Host, body: dict[str, Any], caller: str) -> Operation:
        """Start a PATCH: what ARM shows changes now, what IMDS serves when the operation succeeds.

        A running operation on the host is pre-empted. Raises ArmError.
        """
        identity = host.identity
        if "identity" in body:
            identity = patched(identity, body["identity"], host.resource_id, lambda ids: self._check(host, ids, caller))
        if isinstance(body.get("tags"), dict):
            host.tags = body["tags"]
        self._set_identity(host, identity)
        host.etag += 1
        host.state = "Updating"
        if host.operation is not None:
            self._end(host.operation, "Canceled", PREEMPTED)
        host.operation = self._start(host, identity)
        return host.operation

    def close(self) -> None:
        """Let no operation end any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _check(self, host: Host, ids: Sequence[str], caller: str) -> None:
        for code in ("LinkedAuthorizationFailed", "Conflict", "FailedIdentityOperation"):
            bad = [entry for entry in ids if self._refusal(entry) == code]
            if bad:
                raise refusal(host.resource_id, code, bad, caller)

    def _refusal(self, identity_id: str) -> str | None:
        folded = identity_id.lower()
        missing = None if folded in self.identities else "FailedIdentityOperation"
        return self.refused.get(folded, missing)

    def _set_identity(self, host: Host, identity: HostIdentity) -> None:
        host.identity = identity
        if not identity.system:
            host.system = None
        elif host.system is None:
            ids = str(uuid.uuid4()), str(uuid.uuid4())
            host.system = Principal(self.tenant_id, *ids, host.resource_id)

    def _start(self, host: Host, identity: HostIdentity) -> Operation:
        loop = asyncio.get_running_loop()
        secret = base64.b64encode(os.urandom(2300)).decode()
        operation = Operation(str(uuid.uuid4()), host.resource_id, identity, secret, loop.time())
        self.operations.append(operation)
        self._timers[operation.name] = loop.call_later(self.operation_s, self._finish, host, operation)
        return operation

    def _finish(self, host: Host, operation: Operation) -> None:
        failure = self._failures.pop(0) if self._failures else None
        self._end(operation, "Failed" if failure else "Succeeded", failure)
        host.operation = None
        host.state = operation.status
        if failure is None:
            host.served = operation.identity.folded

    def _end(self, operation: Operation, status: str, error: tuple[str, str] | None) -> None:
        if timer := self._timers.pop(operation.name, None):
            timer.cancel()
        operation.status = status
        operation.error = error
        operation.ended_at = asyncio.get_running_loop().time()
        operation.ended_wall = time.time()


def operation_body(operation: Operation) -> dict[str, Any]:
    """Return what a poll of the operation gets."""
    body: dict[str, Any] = {"startTime": _iso(operation.started_wall)}
    if operation.ended_wall is not None:
        body["endTime"] = _iso(operation.ended_wall)
    body["status"] = operation.status
    if operation.error is not None:
        body["error"] = dict(zip(("code", "message"), operation.error, strict=True))
    return {**body, "name": operation.name}


def _iso(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "0+00:00"


def host_body(azure: Azure, host: Host, with_etag: bool) -> dict[str, Any]:
    """Return a host as GET and PATCH answer it; *with_etag* as API versions since 2023-09-01 do."""
    kind = "virtualMachineScaleSets" if host.is_scale_set else "virtualMachines"
    body: dict[str, Any] = {
        "name": host.resource_id.rsplit("/", 1)[1],
        "id": host.resource_id,
        "type": f"Microsoft.Compute/{kind}",
        "location": host.location,
        "tags": host.tags,
    }
    if host.identity.type != "None":
        body["identity"] = _identity_body(azure, host)
    body["properties"] = {"provisioningState": host.state}
    if host.is_scale_set:
        body["sku"] = {"name": "Standard_D2s_v5", "tier": "Standard", "capacity": len(host.instances)}
        body["properties"] |= {
            "singlePlacementGroup": True,
            "orchestrationMode": "Uniform",
            "upgradePolicy": {"mode": "Manual"},
            "uniqueId": host.unique_id,
        }
    else:
        body["properties"] |= {
            "vmId": host.unique_id,
            "hardwareProfile": {"vmSize": "Standard_D2s_v5"},
            "osProfile": {"computerName": host.computer_name or body["name"]},
        }
    return {**body, "etag": f'"{host.etag}"'} if with_etag else body


def _identity_body(azure: Azure, host: Host) -> dict[str, Any]:
    body: dict[str, Any] = {"type": host.identity.type}
    if host.system is not None:
        body |= {"principalId": host.system.object_id, "tenantId": host.system.tenant_id}
    if host.identity.assigned:
        body["userAssignedIdentities"] = {entry: _assigned_body(azure, host, entry) for entry in host.identity.assigned}
    return body


def _assigned_body(azure: Azure, host: Host, entry: str) -> dict[str, str]:
    held = azure.identities.get(entry.lower())
    if held is None or entry.lower() not in host.served:
        return {}
    return {"principalId": held.principal.object_id, "clientId": held.principal.client_id}


def instance_body(host: Host, number: str, with_etag: bool) -> dict[str, Any]:
    """Return one instance of a Uniform scale set. Raises ArmError (404)."""
    if number not in host.instances:
        raise ArmError(404, "NotFound", f"The VM with id {number} was not found in the scale set.")
    name = host.resource_id.rsplit("/", 1)[1]
    body = {
        "name": f"{name}_{number}",
        "id": f"{host.resource_id}/virtualMachines/{number}",
        "type": "Microsoft.Compute/virtualMachineScaleSets/virtualMachines",
        "location": host.location,
        "instanceId": number,
        "properties": {"provisioningState": "Succeeded", "latestModelApplied": True},
    }
    return {**body, "etag": f'"{host.etag}"'} if with_etag else body


def identity_body(identity: UserAssigned) -> dict[str, Any]:
    """Return a user-assigned identity; its own id reads `/resourcegroups/`, as ARM writes it."""
    parts = identity.resource_id.split("/")
    parts[3] = "resourcegroups"
    return {
        "location": identity.location,
        "tags": identity.tags,
        "id": "/".join(parts),
        "name": parts[-1],
        "type": "Microsoft.ManagedIdentity/userAssignedIdentities",
        "properties": {
            "isolationScope": "None",
            "tenantId": identity.principal.tenant_id,
            "principalId": identity.principal.object_id,
            "clientId": identity.principal.client_id,
        },
    }

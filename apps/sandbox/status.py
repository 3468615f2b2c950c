"""Refusals of the API server: each is a `Status` object with the texts that the real one sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apps.sandbox.resources import Resource


@dataclass(frozen=True, slots=True)
class Cause:
    """One field that is wrong, as `details.causes` lists it."""

    reason: str
    field: str
    message: str


class StatusError(Exception):
    """A request that the API server refuses; *body* is the `Status` it answers with."""

    def __init__(self, code: int, reason: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.details = details

    @property
    def body(self) -> dict[str, Any]:
        """Return the `Status` object."""
        return failure(self.code, self.reason, str(self), self.details)


def failure(code: int, reason: str, message: str, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a `Status` of a request that failed."""
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
    return {**body, "reason": reason, **({} if details is None else {"details": dict(details)}), "code": code}


def _details(resource: Resource, name: str) -> dict[str, str]:
    group = {"group": resource.group} if resource.group else {}
    return {"name": name, **group, "kind": resource.plural}


def not_found(resource: Resource, name: str) -> StatusError:
    """There is no such object."""
    return StatusError(404, "NotFound", f'{resource.key} "{name}" not found', _details(resource, name))


def already_exists(resource: Resource, name: str) -> StatusError:
    """The name is taken."""
    message = f'{resource.key} "{name}" already exists'
    return StatusError(409, "AlreadyExists", message, _details(resource, name))


def conflict(resource: Resource, name: str, why: str = "") -> StatusError:
    """Somebody else has written the object since it was read, or a precondition does not hold."""
    why = why or ("the object has been modified; please apply your changes to the latest version and try again")
    message = f'Operation cannot be fulfilled on {resource.key} "{name}": {why}'
    return StatusError(409, "Conflict", message, _details(resource, name))


def invalid(resource: Resource, name: str, causes: Sequence[Cause]) -> StatusError:
    """The object breaks its kind's rules; *causes* must not be empty."""
    kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    told = [f"{cause.field}: {cause.message}" for cause in causes]
    listed = told[0] if len(told) == 1 else f"[{', '.join(told)}]"
    details: dict[str, Any] = {**_details(resource, name), "kind": resource.kind}
    details["causes"] = [{"reason": c.reason, "message": c.message, "field": c.field} for c in causes]
    return StatusError(422, "Invalid", f'{kind} "{name}" is invalid: {listed}', details)


def patch_failed(why: str) -> StatusError:
    """A JSON patch does not apply to the stored object."""
    message = "the server rejected our request due to an error in our request"
    return StatusError(422, "Invalid", message, {"causes": [{"reason": "UnexpectedServerResponse", "message": why}]})


def expired(message: str) -> StatusError:
    """The asked-for version is no longer in the server's memory."""
    return StatusError(410, "Expired", message)


def bad_request(message: str) -> StatusError:
    """The request cannot be understood."""
    return StatusError(400, "BadRequest", message)


def unknown_path() -> StatusError:
    """No resource is served under this path."""
    return StatusError(404, "NotFound", "the server could not find the requested resource", {})


def method_not_allowed() -> StatusError:
    """The resource does not have this verb."""
    message = "the server does not allow this method on the requested resource"
    return StatusError(405, "MethodNotAllowed", message, {})


def unsupported_media_type(accepted: Sequence[str]) -> StatusError:
    """The body's format is none of *accepted*."""
    listed = ", ".join(accepted)
    message = f"the body of the request was in an unknown format - accepted media types include: {listed}"
    return StatusError(415, "UnsupportedMediaType", message, {})


def unauthorized() -> StatusError:
    """The bearer token is missing or wrong."""
    return StatusError(401, "Unauthorized", "Unauthorized")

"""What can go wrong outside the core, named for the situation. Adapters translate into these at their edge.

    PodIdentityError
    ├── TransientError               try again later, by yourself
    │   ├── Throttled                ... but not before retry_after_s
    │   └── Conflict                 somebody else wrote: read again, decide again
    ├── RefusedError                 somebody must change something first
    │   ├── PermissionRefused        the caller lacks a right
    │   ├── NotFound                 the thing does not exist (any more)
    │   ├── IdentitiesRefused        the host takes none of these identities; others may work
    │   └── TokenRefused             the token service says no, with its status and body
    └── ConfigurationError           a file, flag or environment variable is wrong: names it and the remedy

There is no HTTP and no vendor type in here. The vendor's exception stays as `__cause__`.
"""

from __future__ import annotations

from collections.abc import Sequence

_JSON = (("content-type", "application/json; charset=utf-8"),)


class PodIdentityError(Exception):
    """Root of the tree; never raised itself."""


class TransientError(PodIdentityError):
    """The call may work when it is repeated: network, time-out, overload, a server restarting."""


class Throttled(TransientError):
    """Asked too often. Repeating before *retry_after_s* seconds have passed makes it worse."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Conflict(TransientError):
    """The object changed under the call, or a newer write replaced it. Read it again, then decide again."""


class RefusedError(PodIdentityError):
    """Repeating the call changes nothing until a person changes something."""


class PermissionRefused(RefusedError):
    """The program's own identity lacks a right; the message names the right where the server does."""


class NotFound(RefusedError):
    """The object or host does not exist."""


class IdentitiesRefused(RefusedError):
    """A host refused a change because of some of its identities.

    *resource_ids* are the refused ones as they were sent; empty when the server named none. The rest of
    the change was not applied either.
    """

    def __init__(self, message: str, *, resource_ids: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.resource_ids = resource_ids


class TokenRefused(RefusedError):
    """The token service answered, and the answer is no. *status*, *headers* and *body* are its own, for the pod.

    *headers* are those that mean something to the pod; their names are in lower case.
    """

    def __init__(self, message: str, *, status: int, body: bytes, headers: Sequence[tuple[str, str]] = _JSON) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.headers = headers


class ConfigurationError(PodIdentityError):
    """A setting is missing or wrong. The message names the file, flag or variable, the value, and the remedy."""

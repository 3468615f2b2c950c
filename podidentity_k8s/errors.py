"""From what an API server or a connection to it says, to the errors of the core. The only place that knows both.

The server's words are passed on only from a `Status` object: a proxy's page or somebody else's JSON may hold anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import aiohttp
from kubernetes.aio.config import ConfigException

from podidentity_core.errors import (
    ConfigurationError,
    Conflict,
    NotFound,
    PermissionRefused,
    PodIdentityError,
    RefusedError,
    Throttled,
    TransientError,
)

_MESSAGE_CHARS = 500  # an admission webhook may answer with pages of text; events and log lines shall stay readable
_DEFAULT_RETRY_AFTER_S = 1.0  # what an API server itself sends with 429


class Expired(TransientError):
    """The resource version or the continue token is too old (410): list again."""


_BY_STATUS: Mapping[int, type[PodIdentityError]] = {
    401: PermissionRefused,
    403: PermissionRefused,
    404: NotFound,
    408: TransientError,
    409: Conflict,
    410: Expired,
}


def error_of(action: str, status: int, body: bytes, headers: Mapping[str, str]) -> PodIdentityError:
    """Name the situation that an answer of *status* 300 or more stands for; *action* says what was tried."""
    message = f"{action}: {_words(body) or 'no further explanation'} (HTTP {status})"
    if status == 429:
        return Throttled(message, retry_after_s=_seconds(headers.get("Retry-After", "")))
    if status >= 500:
        return TransientError(message)
    return _BY_STATUS.get(status, RefusedError)(message)


def _words(body: bytes) -> str:
    try:
        said = json.loads(body)
    except ValueError:
        return ""
    if not isinstance(said, dict) or said.get("kind") != "Status":
        return ""
    return str(said.get("message", ""))[:_MESSAGE_CHARS]


def _seconds(retry_after: str) -> float:
    return float(retry_after) if retry_after.isdecimal() else _DEFAULT_RETRY_AFTER_S


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn errors of the connection into errors of the core; the original stays as `__cause__`."""
    try:
        yield
    except aiohttp.InvalidURL as error:
        raise ConfigurationError(f"{action}: {error} is no address of an API server; correct `server`") from error
    except aiohttp.ClientConnectorCertificateError as error:
        raise ConfigurationError(
            f"{action}: the API server's certificate does not fit: {error.certificate_error};"
            " correct `certificate-authority` or `server` of the kubeconfig"
        ) from error
    except ConfigException as error:
        raise TransientError(f"{action}: the service account's token cannot be read: {error}") from error
    except TimeoutError as error:
        raise TransientError(f"{action}: no answer in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise TransientError(f"{action}: {str(error) or type(error).__name__}") from error

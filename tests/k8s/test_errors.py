"""Every error of the connection, and every status, becomes an error of the core."""

from __future__ import annotations

import inspect
import json
import ssl

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

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
from podidentity_k8s.errors import Expired, error_of, translated

CLASSES = sorted(
    (
        one
        for _, one in inspect.getmembers(aiohttp, inspect.isclass)
        if issubclass(one, aiohttp.ClientError) and not issubclass(one, Warning)
    ),
    key=lambda one: one.__name__,
)


def made(kind: type[aiohttp.ClientError]) -> aiohttp.ClientError:
    key = ConnectionKey("host", 443, True, True, None, None, None)
    if kind is aiohttp.ClientConnectorCertificateError:
        return kind(key, ssl.SSLCertVerificationError("self-signed"))
    if issubclass(kind, aiohttp.ClientConnectorError):
        return kind(key, OSError(111, "refused"))
    if issubclass(kind, aiohttp.ClientResponseError):
        url = URL("http://host/x")
        return kind(aiohttp.RequestInfo(url, "GET", CIMultiDictProxy(CIMultiDict()), url), ())
    if kind is aiohttp.ServerFingerprintMismatch:
        return kind(b"expected", b"got", "host", 443)
    if issubclass(kind, aiohttp.InvalidURL):
        return kind("not-an-address")
    return kind("broken")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_of_the_client_is_translated(kind: type[aiohttp.ClientError]) -> None:
    is_setting = issubclass(kind, aiohttp.InvalidURL | aiohttp.ClientConnectorCertificateError)
    cause = made(kind)

    with pytest.raises(ConfigurationError if is_setting else TransientError, match="GET /x") as told:  # noqa: SIM117
        with translated("GET /x"):
            raise cause

    assert told.value.__cause__ is cause


@pytest.mark.parametrize("error", [TimeoutError(), OSError(104, "reset"), ConnectionResetError()])
def test_errors_of_the_system_are_transient(error: OSError) -> None:
    with pytest.raises(TransientError), translated("GET /x"):
        raise error


def test_a_bug_is_not_translated() -> None:
    with pytest.raises(ZeroDivisionError), translated("GET /x"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, RefusedError),
        (400, RefusedError),
        (401, PermissionRefused),
        (403, PermissionRefused),
        (404, NotFound),
        (405, RefusedError),
        (408, TransientError),
        (409, Conflict),
        (410, Expired),
        (415, RefusedError),
        (422, RefusedError),
        (429, Throttled),
        (500, TransientError),
        (502, TransientError),
        (503, TransientError),
        (504, TransientError),
    ],
)
def test_every_status_names_its_situation(status: int, kind: type[PodIdentityError]) -> None:
    body = json.dumps({"kind": "Status", "message": "the server's words"}).encode()

    error = error_of("GET /x", status, body, {})

    assert type(error) is kind
    assert str(error) == f"GET /x: the server's words (HTTP {status})"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"kind":"Other","message":"leak"}', b"\xff"])
def test_only_a_status_is_quoted(body: bytes) -> None:
    assert str(error_of("GET /x", 500, body, {})) == "GET /x: no further explanation (HTTP 500)"


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("", 1.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 1.0)])
def test_retry_after_in_seconds(header: str, seconds: float) -> None:
    error = error_of("GET /x", 429, b"", {"Retry-After": header})

    assert isinstance(error, Throttled)
    assert error.retry_after_s == seconds


def test_a_long_explanation_is_cut() -> None:
    body = json.dumps({"kind": "Status", "message": "x" * 10_000}).encode()

    assert len(str(error_of("GET /x", 500, body, {}))) < 600

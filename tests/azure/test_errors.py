"""Which error of the core each complaint of Azure becomes."""

from __future__ import annotations

from typing import Any

import pytest

from podidentity_azure.errors import LONGEST_RETRY_AFTER_S, Fault, core_error, named_identities, retry_after_s
from podidentity_core.errors import (
    Conflict,
    IdentitiesRefused,
    NotFound,
    PermissionRefused,
    PodIdentityError,
    RefusedError,
    Throttled,
    TransientError,
)
from podidentity_core.resource_ids import IdentityResource, parse_identity_resource
from podidentity_core.testing.builders import resource

SENT = [resource("web"), resource("web-2"), resource("db")]
HOST = "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/virtualMachineScaleSets/pool"


def identity_operation(status: str, message: str) -> dict[str, Any]:
    """As ARM wraps what the identity service said: JSON in quotes in JSON."""
    inner = f'{{"error":{{"code":"{status}","message":"{message}"}}}}'
    text = (
        f"Identity operation for resource '{HOST}' failed with error 'Failed to perform resource identity operation. "
        f"Status: '{status}'. Response: '{inner}'.'."
    )
    return {"error": {"code": "FailedIdentityOperation", "message": text}}


def linked(scopes: str) -> dict[str, Any]:
    text = (
        f"The client 'c' with object id 'o' has permission to perform action 'write' on scope '{HOST}'; however, it "
        "does not have permission to perform action 'Microsoft.ManagedIdentity/userAssignedIdentities/assign/action' "
        f"on the linked scope(s) '{scopes}' or the linked scope(s) are invalid."
    )
    return {"error": {"code": "LinkedAuthorizationFailed", "message": text}}


def plain(code: str, message: str = "Words.") -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


NOT_FOUND = identity_operation("BadRequest", f"Resource '{resource('web').text.lower()}' was not found.")
BOTH = f"{resource('web').text.lower()},{resource('db').text}"
MARKED = "Operation 'Update Virtual Machine Scale Set' is not allowed on 'pool' since it is marked for deletion."
TOO_MANY = {"code": "OperationNotAllowed", "message": "The server rejected the request because too many requests."}


@pytest.mark.parametrize(
    ("status", "body", "expected", "named"),
    [
        pytest.param(400, NOT_FOUND, IdentitiesRefused, ["web"], id="identity does not exist"),
        pytest.param(400, identity_operation("BadRequest", "Bad request."), IdentitiesRefused, [], id="names none"),
        pytest.param(400, plain("FailedIdentityOperation", "Bad."), IdentitiesRefused, [], id="no inner status"),
        pytest.param(400, identity_operation("Conflict", "being changed"), Conflict, [], id="inner conflict"),
        pytest.param(400, identity_operation("TooManyRequests", "slow"), TransientError, [], id="inner throttling"),
        pytest.param(400, identity_operation("InternalServerError", "oh"), TransientError, [], id="inner breakdown"),
        pytest.param(403, linked(resource("web-2").text), IdentitiesRefused, ["web-2"], id="one linked scope"),
        pytest.param(403, linked(BOTH), IdentitiesRefused, ["web", "db"], id="joined linked scopes"),
        pytest.param(403, linked("/subscriptions/s/gallery"), PermissionRefused, [], id="linked scope is no identity"),
        pytest.param(
            400, plain("InvalidIdentityId", f"The identity ids '{resource('db').text}' are invalid."),
            IdentitiesRefused, ["db"], id="malformed identity",
        ),
        pytest.param(
            400, plain("LinkedInvalidPropertyId", f"Property id '{resource('db').text}' at path '' is invalid."),
            IdentitiesRefused, ["db"], id="malformed linked id",
        ),
        pytest.param(400, plain("InvalidRequestContent"), RefusedError, [], id="malformed request"),
        pytest.param(401, plain("InvalidAuthenticationTokenAudience"), PermissionRefused, [], id="wrong audience"),
        pytest.param(401, plain("ExpiredAuthenticationToken"), TransientError, [], id="expired token"),
        pytest.param(401, plain("InvalidAuthenticationToken"), TransientError, [], id="invalid token"),
        pytest.param(403, plain("AuthorizationFailed", f"over '{HOST}'"), PermissionRefused, [], id="no right"),
        pytest.param(404, plain("ResourceNotFound"), NotFound, [], id="host is gone"),
        pytest.param(404, plain("ResourceGroupNotFound"), NotFound, [], id="group is gone"),
        pytest.param(408, plain("RequestTimeout"), TransientError, [], id="request timed out"),
        pytest.param(409, plain("Conflict"), Conflict, [], id="concurrent request"),
        pytest.param(409, plain("OperationPreempted"), Conflict, [], id="pre-empted at once"),
        pytest.param(409, plain("ScopeLocked"), RefusedError, [], id="lock"),
        pytest.param(409, plain("OperationNotAllowed", MARKED), RefusedError, [], id="marked for deletion"),
        pytest.param(412, plain("PreconditionFailed"), Conflict, [], id="stale etag"),
        pytest.param(429, plain("SubscriptionRequestsThrottled"), Throttled, [], id="ARM throttles"),
        pytest.param(429, TOO_MANY, Throttled, [], id="CRP throttles, without an outer error"),
        pytest.param(429, plain("ResourceReadFailed"), Throttled, [], id="Azure Policy throttles"),
        pytest.param(500, plain("InternalServerError"), TransientError, [], id="breakdown"),
        pytest.param(502, plain("ProviderError"), TransientError, [], id="provider breakdown"),
        pytest.param(503, None, TransientError, [], id="no body"),
        pytest.param(503, ["what"], TransientError, [], id="a body of another form"),
        pytest.param(418, None, RefusedError, [], id="unheard-of refusal"),
        pytest.param(200, None, TransientError, [], id="no JSON in a success"),
        pytest.param(None, plain("OperationPreempted"), Conflict, [], id="operation: pre-empted"),
        pytest.param(None, NOT_FOUND, IdentitiesRefused, ["web"], id="operation: identity does not exist"),
        pytest.param(None, linked(BOTH), IdentitiesRefused, ["web", "db"], id="operation: linked scopes"),
        pytest.param(None, plain("InternalOperationError"), TransientError, [], id="operation: breakdown"),
    ],
)  # fmt: skip
def test_complaints_become_errors_of_the_core(
    status: int | None, body: object, expected: type[PodIdentityError], named: list[str]
) -> None:
    error = core_error(Fault.of_body(body, status=status, default="no words"), "patch the host", SENT)

    assert type(error) is expected
    assert str(error).startswith("patch the host: ")
    if isinstance(error, IdentitiesRefused):
        assert error.resource_ids == {resource(name).text for name in named}


def test_the_words_of_the_server_are_kept_with_all_details() -> None:
    body = {"error": {"code": "A", "message": "first", "details": [{"code": "B", "message": "second"}, {}, None]}}

    fault = Fault.of_body(body, status=400)

    assert (fault.code, fault.text) == ("A", "A: first; B: second")


def test_an_error_of_entra_is_read_too() -> None:
    body = {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."}

    fault = Fault.of_body(body, status=401)

    assert fault.text == "invalid_client: AADSTS7000215: Invalid client secret provided."


@pytest.mark.parametrize("status", [429, 503, 500])
def test_what_the_server_asks_to_wait_is_kept(status: int) -> None:
    error = core_error(Fault.of_body(None, status=status, retry_after_s=180.0), "get")

    assert isinstance(error, Throttled)
    assert error.retry_after_s == 180.0


def test_throttling_without_a_wait_still_names_one() -> None:
    error = core_error(Fault.of_body(None, status=429), "get")

    assert isinstance(error, Throttled)
    assert error.retry_after_s > 0


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "1200"}, 1200.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "86400"}, LONGEST_RETRY_AFTER_S),
        ({"retry-after": "9" * 400}, LONGEST_RETRY_AFTER_S),
        (
            {"retry-after": "Tue, 24 Nov 2062 20:01:30 GMT", "date": "Tue, 24 Nov 2026 20:00:00 GMT"},
            LONGEST_RETRY_AFTER_S,
        ),
        ({"retry-after": "Tue, 24 Nov 2026 20:01:30 GMT", "date": "Tue, 24 Nov 2026 20:00:00 GMT"}, 90.0),
        ({"retry-after": "Tue, 24 Nov 2026 20:00:00 GMT", "date": "Tue, 24 Nov 2026 20:01:30 GMT"}, 0.0),
        ({"retry-after": "Tue, 24 Nov 2026 20:01:30 GMT"}, None),
        ({"retry-after": "soon", "date": "Tue, 24 Nov 2026 20:00:00 GMT"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "1.5"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_retry_after_is_a_number_or_a_date_and_never_a_crash(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(headers) == expected


def identity_in(group: str, name: str = "web") -> IdentityResource:
    return parse_identity_resource(
        f"/subscriptions/s/resourceGroups/{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}"
    )


@pytest.mark.parametrize("group", ["rg", "r.g", "rg_(test)", "größe", "rg+1[x]", "a.b(c)-d_e"])
@pytest.mark.parametrize("form", ["'{}'", '"{}"', "'{},/other'", "{} was not found", "({})", "ends with {}"])
def test_an_identity_is_found_whatever_characters_its_name_has(group: str, form: str) -> None:
    wanted, other = identity_in(group), identity_in("elsewhere")

    assert named_identities(form.format(wanted.text.lower()), [other, wanted]) == {wanted.text}


def test_an_identity_is_found_where_its_name_is_escaped() -> None:
    wanted = identity_in("größe")
    text = wanted.text.lower().replace("ö", "\\u00f6").replace("ß", "\\u00DF")

    assert named_identities(f"Resource '{text}' was not found", [wanted]) == {wanted.text}


@pytest.mark.parametrize("longer", ["web2", "web-2", "web_2"])
def test_an_identity_is_not_found_in_a_longer_one(longer: str) -> None:
    short, long = identity_in("rg"), identity_in("rg", longer)

    assert named_identities(f"'{long.text.lower()}'", [short, long]) == {long.text}
    assert named_identities(f"'{long.text.lower()}'", [short]) == frozenset()
    assert named_identities(f"'{long.text.lower()},{short.text}'", [short, long]) == {long.text, short.text}

"""What becomes of each of Entra's answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from podidentity_azure.asking import Passing
from podidentity_azure.entra_answers import THROTTLED_S, CredentialRefused, read_token, refusal
from podidentity_core.errors import PodIdentityError, RefusedError, Throttled, TokenRefused, TransientError
from podidentity_core.model import IdentityKind
from podidentity_core.testing import builders

VAULT = "https://vault.azure.net"
TOKEN = "eyJ0.the-token.sig"
SECRET = "the secret+of/the&test"
WEB = builders.identity("web", kind=IdentityKind.SERVICE_PRINCIPAL)
ANSWER = {
    "token_type": "Bearer",
    "expires_in": "3599",
    "ext_expires_in": "3600",
    "expires_on": "1388444763",
    "not_before": "1388440863",
    "resource": f"{VAULT}/",
    "access_token": TOKEN,
}
"""What version 1 answers."""


def token_of(members: Mapping[str, Any], now_s: float = 1_388_441_163.0) -> tuple[float, dict[str, str]]:
    token = read_token(json.dumps(members).encode(), WEB, VAULT, now_s=now_s)
    return token.expires_on_s, dict(token.fields)


def refused(status: int, body: Any, headers: Mapping[str, str] | None = None) -> PodIdentityError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return refusal(status, headers or {}, raw, WEB, withheld=[SECRET])


def test_a_token_has_the_members_that_the_metadata_service_sends_in_its_order() -> None:
    token = read_token(json.dumps(ANSWER).encode(), WEB, VAULT, now_s=0.0)

    assert (token.token, token.expires_on_s) == (TOKEN, 1388444763.0)
    assert token.fields == (
        ("client_id", WEB.client_id),
        ("ext_expires_in", "3600"),
        ("not_before", "1388440863"),
        ("resource", f"{VAULT}/"),
        ("token_type", "Bearer"),
    )


@pytest.mark.parametrize(
    "members",
    [
        {"access_token": TOKEN, "expires_in": 3600},
        {"access_token": TOKEN, "expires_in": "3600", "not_before": None, "resource": [1], "token_type": ""},
    ],
    ids=["as AD FS", "odd"],
)
def test_what_is_left_out_is_filled_in(members: dict[str, Any]) -> None:
    assert token_of(members, now_s=1000.0) == (
        4600.0,
        {
            "client_id": WEB.client_id,
            "ext_expires_in": "3600",
            "not_before": "1000",
            "resource": VAULT,
            "token_type": "Bearer",
        },
    )


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("1388444763", 1388444763.0),
        (1388444763, 1388444763.0),
        (1388444763.5, 1388444763.5),
        ("12/30/2013 11:06:03 PM +00:00", 1388444763.0),
        ("12/30/2013 23:06:03 PM +00:00", 1388444763.0),
        ("12/30/2013 23:06:03 +00:00", 1388444763.0),
        ("1/2/2014 12:00:00 AM +00:00", 1388620800.0),
        ("1/2/2014 12:00:00 PM +00:00", 1388664000.0),
        ("01/02/2014 0:00:00 +00:00", 1388620800.0),
        ("", 1388444762.0),
        (None, 1388444762.0),
    ],
)
def test_the_expiry_comes_in_several_forms(stated: Any, expected: float) -> None:
    assert token_of({**ANSWER, "expires_on": stated})[0] == expected


@pytest.mark.parametrize(
    "body",
    [
        TOKEN.encode(),
        b"",
        b"[" * 100_000,
        json.dumps([TOKEN]).encode(),
        json.dumps({**ANSWER, "access_token": [TOKEN]}).encode(),
        json.dumps({**ANSWER, "access_token": ""}).encode(),
        json.dumps({"access_token": TOKEN}).encode(),
        json.dumps({**ANSWER, "expires_on": f"soon {TOKEN}"}).encode(),
        json.dumps({**ANSWER, "expires_on": "13/30/2013 23:06:03 +00:00"}).encode(),
        json.dumps({**ANSWER, "expires_on": "12/30/2013 23:06:03 +01:00"}).encode(),
        json.dumps({**ANSWER, "expires_on": "nan"}).encode(),
        json.dumps({**ANSWER, "expires_on": 10**400}).encode(),
        json.dumps({**ANSWER, "expires_on": None, "expires_in": "1e999"}).encode(),
        json.dumps({**ANSWER, "expires_on": [1]}).encode(),
    ],
    ids=range(14),
)
def test_a_success_that_is_no_token_is_a_passing_trouble_and_is_not_shown(body: bytes) -> None:
    with pytest.raises(TransientError) as caught:
        read_token(body, WEB, VAULT, now_s=0.0)

    assert TOKEN not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def error(code: int, name: str = "invalid_client") -> dict[str, Any]:
    told = f"AADSTS{code}: It is like that. Trace ID: 1 Correlation ID: 2 Timestamp: 2023-05-06 06:03:00Z"
    return {
        "error": name,
        "error_description": told,
        "error_codes": [code],
        "timestamp": "2023-05-06 06:03:00Z",
        "trace_id": "1",
        "error_uri": "https://login.microsoftonline.com/error",
    }


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, error(7000215), CredentialRefused),
        (401, error(7000222), CredentialRefused),
        (401, error(700027), CredentialRefused),
        (400, error(700016, "unauthorized_client"), TokenRefused),
        (400, error(90002, "invalid_request"), TokenRefused),
        (400, error(50001, "invalid_resource"), TokenRefused),
        (403, error(53003, "access_denied"), TokenRefused),
        (400, error(90033, "temporarily_unavailable"), Passing),
        (400, error(90024), Passing),
        (400, error(90012), Passing),
        (401, error(90061), Passing),
        (400, {"error": "temporarily_unavailable"}, Passing),
        (400, error(50196), Throttled),
        (400, error(90055), Throttled),
        (429, b"", Throttled),
        (408, b"", Passing),
        (500, b"<html>", Passing),
        (504, error(90033), Passing),
        (301, b"", RefusedError),
        (404, b"<html>", RefusedError),
        (400, b"<html>", RefusedError),
        (400, {"error": {"code": 1}}, RefusedError),
        (407, error(1), RefusedError),
        (204, b"", TransientError),
    ],
)
def test_each_answer_stands_for_a_situation(status: int, body: Any, kind: type[PodIdentityError]) -> None:
    found = refused(status, body)

    assert type(found) is kind
    assert f"Entra ID answered {status} for AzureIdentity default/web" in str(found)


def test_a_refusal_keeps_entras_words_and_no_more() -> None:
    found = refused(401, error(7000215))

    assert isinstance(found, TokenRefused)
    assert found.status == 401
    assert found.headers == (("content-type", "application/json; charset=utf-8"),)
    assert json.loads(found.body) == {
        "error": "invalid_client",
        "error_description": error(7000215)["error_description"],
    }


@pytest.mark.parametrize("spelling", [SECRET, "the+secret%2Bof%2Fthe%26test"])
@pytest.mark.parametrize("member", ["error", "error_description"])
def test_a_refusal_never_repeats_the_credential(member: str, spelling: str) -> None:
    found = refused(400, {**error(1), member: f"you sent client_secret={spelling}"})

    assert isinstance(found, TokenRefused)
    assert spelling not in str(found)
    assert spelling not in found.body.decode()


def test_other_peoples_words_are_bounded() -> None:
    found = refused(400, {"error": "e" * 10_000, "error_description": "d" * 10_000})

    assert isinstance(found, TokenRefused)
    assert len(found.body) < 2500


@pytest.mark.parametrize("status", [429, 408, 503])
@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT", "date": "Fri, 31 Dec 1999 23:59:49 GMT"}, 10.0),
    ],
)
def test_how_long_to_wait_is_told(status: int, headers: dict[str, str], expected_s: float) -> None:
    found = refused(status, b"", headers)

    assert isinstance(found, Throttled)
    assert found.retry_after_s == expected_s


@pytest.mark.parametrize("headers", [{}, {"retry-after": "soon"}])
def test_throttling_without_a_time_has_a_usual_one(headers: dict[str, str]) -> None:
    found = refused(429, b"", headers)

    assert isinstance(found, Throttled)
    assert found.retry_after_s == THROTTLED_S

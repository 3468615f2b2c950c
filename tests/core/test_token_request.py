"""The query of a token request: what is understood, and what is refused rather than dropped."""

from __future__ import annotations

import pytest

from podidentity_core.reasons import Explanation, Reason, because
from podidentity_core.token_request import Selector, SelectorKind, TokenRequest, parse_query, redact

ARM = "https://management.azure.com/"
GUID = "AABC0000-a83d-494a-8000-2c0a66b0c1f9"
RESOURCE_ID = "/subscriptions/s/resourcegroups/RG/providers/Microsoft.ManagedIdentity/userAssignedIdentities/A"

BY_CLIENT = Selector(SelectorKind.CLIENT_ID, GUID, GUID.lower())
BY_RESOURCE = Selector(SelectorKind.RESOURCE_ID, RESOURCE_ID, RESOURCE_ID.lower())
BY_OBJECT = Selector(SelectorKind.OBJECT_ID, GUID, GUID.lower())

VALID = {
    "resource=x": TokenRequest("x"),
    "resource=https://management.azure.com/": TokenRequest(ARM),
    "resource=https%3A%2F%2Fmanagement.azure.com%2F": TokenRequest(ARM),
    "resource=https%3a%2f%2fmanagement.azure.com%2f&api-version=2018-02-01": TokenRequest(ARM),
    "api-version=2018-02-01&resource=x": TokenRequest("x"),
    "api-version=1&api-version=2&resource=x": TokenRequest("x"),
    "&&resource=x&": TokenRequest("x"),
    "%72esource=x": TokenRequest("x"),
    "resource=a+b": TokenRequest("a b"),
    "resource=a%2Bb": TokenRequest("a+b"),
    "resource=a=b": TokenRequest("a=b"),
    "resource=%C3%A4": TokenRequest("ä"),
    f"resource=x&client_id={GUID}": TokenRequest("x", BY_CLIENT),
    f"client_id={GUID}&resource=x&bypass_cache=true": TokenRequest("x", BY_CLIENT),
    f"resource=x&msi_res_id={RESOURCE_ID}": TokenRequest("x", BY_RESOURCE),
    f"resource=x&mi_res_id={RESOURCE_ID}": TokenRequest("x", BY_RESOURCE),
    f"resource=x&mi_res_id={RESOURCE_ID.replace('/', '%2F')}": TokenRequest("x", BY_RESOURCE),
    f"resource=x&msi_res_id={RESOURCE_ID}&mi_res_id={RESOURCE_ID}": TokenRequest("x", BY_RESOURCE),
    f"resource=x&object_id={GUID}": TokenRequest("x", BY_OBJECT),
    "resource=x&client_id=": TokenRequest("x"),
    "resource=x&client_id": TokenRequest("x"),
    f"resource=x&client_id=&msi_res_id=&mi_res_id={RESOURCE_ID}&object_id=": TokenRequest("x", BY_RESOURCE),
    f"resource=x&resource_id={RESOURCE_ID}": TokenRequest("x", BY_RESOURCE),
    f"resource=x&principal_id={GUID}": TokenRequest("x", BY_OBJECT),
    "resource=x&bypass_cache=y&unknown=%zz": TokenRequest("x"),
}


@pytest.mark.parametrize(("query", "request_"), VALID.items(), ids=VALID)
def test_a_valid_query_is_read(query: str, request_: TokenRequest) -> None:
    assert parse_query(query) == request_


REFUSED = {
    "": Reason.RESOURCE_MISSING,
    "resource": Reason.RESOURCE_MISSING,
    "resource=": Reason.RESOURCE_MISSING,
    "Resource=x": Reason.RESOURCE_MISSING,
    "resource[]=x": Reason.RESOURCE_MISSING,
    f"client_id={GUID}": Reason.RESOURCE_MISSING,
    "api-version=2018-02-01": Reason.RESOURCE_MISSING,
    "resource=x&resource=x": Reason.BAD_QUERY,
    "resource=x&resource=y": Reason.BAD_QUERY,
    "resource=x&%72esource=y": Reason.BAD_QUERY,
    "resource=&resource=x": Reason.BAD_QUERY,
    f"resource=x&client_id={GUID}&client_id={GUID}": Reason.BAD_QUERY,
    f"resource=x&client_id=&client_id={GUID}": Reason.BAD_QUERY,
    "resource=x&client_id=%": Reason.BAD_QUERY,
    "resource=x&client_id=%4": Reason.BAD_QUERY,
    "resource=x&client_id=%zz": Reason.BAD_QUERY,
    f"resource=x&client_id={GUID};": Reason.BAD_QUERY,
    f"resource=x;client_id={GUID}": Reason.BAD_QUERY,
    "resource=%00": Reason.BAD_QUERY,
    "resource=x%0d%0aHost:evil": Reason.BAD_QUERY,
    "resource=x\r\nHost:evil": Reason.BAD_QUERY,
    "resource=x%7f": Reason.BAD_QUERY,
    "resource=%ff": Reason.BAD_QUERY,
    "resource=%ED%A0%80": Reason.BAD_QUERY,
    "resource=x%C2%85y": Reason.BAD_QUERY,  # a line's end for many readers
    "resource=x%E2%80%A8y": Reason.BAD_QUERY,
    "resource=%E2%80%AEx": Reason.BAD_QUERY,
    "resource=\u00e4": Reason.BAD_QUERY,
    "resource=a b": Reason.BAD_QUERY,
    "resource=x#y": Reason.BAD_QUERY,
    f"resource=x&client_id=#{GUID}": Reason.BAD_QUERY,
    f"resource=x&client_id={GUID}%0a": Reason.BAD_QUERY,
    f"resource={'x' * 8192}": Reason.BAD_QUERY,
    f"resource=x&client_id={GUID}&msi_res_id={RESOURCE_ID}": Reason.TWO_SELECTORS,
    f"resource=x&client_id={GUID}&object_id={GUID}": Reason.TWO_SELECTORS,
    "resource=x&msi_res_id=a&mi_res_id=b": Reason.TWO_SELECTORS,
}


@pytest.mark.parametrize(
    ("query", "reason"), REFUSED.items(), ids=lambda value: str(value)[:60].encode("unicode_escape")
)
def test_a_query_that_is_not_understood_is_refused(query: str, reason: Reason) -> None:
    answer = parse_query(query)

    assert isinstance(answer, Explanation)
    assert answer.reason is reason


@pytest.mark.parametrize("query", REFUSED, ids=lambda value: str(value)[:60].encode("unicode_escape"))
def test_the_refusal_shows_no_value(query: str) -> None:
    assert GUID not in str(parse_query(query))


def test_the_refusal_names_the_parameter() -> None:
    assert parse_query("resource=x&resource=x") == because(Reason.BAD_QUERY, problem="resource is given twice")


def test_the_longest_query_is_read() -> None:
    assert parse_query("resource=" + "x" * (8192 - 9)) == TokenRequest("x" * (8192 - 9))


REDACTED = {
    "aabc0000-a83v-9h4m-000j-2c0a66b0c1f9": "aabc##### REDACTED #####c1f9",
    "12345678": "1234##### REDACTED #####5678",
    "1234567": "##### REDACTED #####",
    "1": "##### REDACTED #####",
    "": "##### REDACTED #####",
    "abcd\nsecret\nwxyz": "abcd##### REDACTED #####wxyz",
}


@pytest.mark.parametrize(("client_id", "shown"), REDACTED.items(), ids=ascii)
def test_a_client_id_is_shown_by_its_ends_only(client_id: str, shown: str) -> None:
    assert redact(client_id) == shown


@pytest.mark.parametrize("client_id", ["ab secret-value cd", "   secret-value", "secret-value\n", "sec ret-value-1234"])
def test_a_client_id_with_spaces_is_not_shown_whole(client_id: str) -> None:
    assert client_id not in redact(client_id)


SHOWN = {
    "client_id AABC##### REDACTED #####c1f9": BY_CLIENT,
    f"msi_res_id {RESOURCE_ID}": BY_RESOURCE,
    f"object_id {GUID}": BY_OBJECT,
}


@pytest.mark.parametrize(("text", "selector"), SHOWN.items(), ids=SHOWN)
def test_a_selector_shows_no_whole_client_id(text: str, selector: Selector) -> None:
    assert str(selector) == text

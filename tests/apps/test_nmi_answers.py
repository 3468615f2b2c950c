"""What NMI answers, byte for byte, through the real server."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import replace

import pytest

from apps.nmi.answers import denial, token_answer
from apps.nmi.api import ApiSettings
from podidentity_core.errors import RefusedError, Throttled, TokenRefused, TransientError
from podidentity_core.model import AssignmentState, IdentityKind
from podidentity_core.ports import AccessToken
from podidentity_core.reasons import Reason, because
from podidentity_core.testing import builders as build
from tests.apps.nmi_server import ASK, AT_ONCE, CREATED, NAMED, OTHER, POD, RESOURCE_ID, TOKEN, WEB, nmi_server, problem
from tests.apps.raw_http import MARKED


async def test_a_token_is_answered_as_imds_does_it_with_the_lifetime_before_the_end() -> None:
    async with nmi_server(POD, WEB) as nmi:
        reply = await nmi.get()

    assert reply.status == 200
    assert reply.body == (
        b'{"access_token":"token-1","client_id":"%b","expires_in":"86400","expires_on":"1700086400",'
        b'"not_before":"1700000000","resource":"https://vault.azure.net","token_type":"Bearer"}' % NAMED.encode()
    )
    assert reply.headers == (
        ("content-type", "application/json; charset=utf-8"),
        ("content-length", str(len(reply.body))),
        ("connection", "close"),
    )


@pytest.mark.parametrize(
    "headers",
    [{}, {"Metadata": "True"}, {"Metadata": "false"}, {"Metadata": ""}, {"X-Metadata": "true"}],
    ids=str,
)
@pytest.mark.parametrize("target", [ASK, TOKEN, "/metadata/instance", "/unheard/of"])
async def test_without_the_metadata_header_the_answer_is_that_of_imds_at_once(
    target: str, headers: Mapping[str, str]
) -> None:
    """SDKs probe like this, from pods that are not known yet, and wait one second at most."""
    async with nmi_server(following=False) as nmi:
        reply = await nmi.get(target, headers=headers)

    assert reply.status == 400
    assert reply.body == b'{"error":"invalid_request","error_description":"Required metadata header not specified"}'
    assert len(reply.body) == 88
    assert reply.headers == (
        ("content-type", "application/json; charset=utf-8"),
        ("content-length", "88"),
        ("connection", "close"),
    )


@pytest.mark.parametrize("headers", [{}, {"Metadata": "yes"}], ids=str)
async def test_the_header_can_be_made_optional(headers: Mapping[str, str]) -> None:
    async with nmi_server(POD, WEB, api=ApiSettings(metadata_header_required=False)) as nmi:
        assert (await nmi.get(headers=headers)).status == 200
        assert (await nmi.get("/metadata/instance", headers=headers)).status == 200


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("target", [ASK, "/metadata/instance?api-version=2021-02-01"])
async def test_a_forwarded_request_is_refused_as_imds_does_it(target: str, required: bool) -> None:
    headers = {**MARKED, "X-Forwarded-For": "127.1.0.2"}
    async with nmi_server(POD, WEB, api=ApiSettings(metadata_header_required=required)) as nmi:
        reply = await nmi.get(target, headers=headers)

    assert (reply.status, reply.header("content-type")) == (400, "application/xml")
    assert b"<Code>InvalidHeaderValue</Code>" in reply.body
    assert b"<Details>Header contains 'X-Forwarded-For' are not supported.</Details>" in reply.body
    assert nmi.upstream.targets == []


@pytest.mark.parametrize(
    ("target", "allowed"),
    [(ASK, "GET"), ("/metadata/instance", "GET, HEAD"), ("/metadata/scheduledevents", "GET, HEAD")],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
async def test_methods_other_than_get_are_refused(
    method: str, target: str, allowed: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="uvicorn.error")
    async with nmi_server(POD, WEB) as nmi:
        reply = await nmi.get(target, method=method)

    assert problem(reply) == (405, "invalid_request", f"method {method} is not allowed here (PI315: use GET)")
    assert reply.header("allow") == allowed
    assert (nmi.upstream.targets, nmi.tokens.calls) == ([], [])


async def test_head_is_refused_for_tokens_without_a_body() -> None:
    async with nmi_server(POD, WEB) as nmi:
        reply = await nmi.get(method="HEAD")

    assert (reply.status, reply.body, reply.header("allow")) == (405, b"", "GET")


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "Required query variable 'resource' is missing"),
        ("resource=", "Required query variable 'resource' is missing"),
        ("Resource=x", "Required query variable 'resource' is missing"),
        ("resource=x&resource=y", "PI303"),
        ("resource=x&client_id=1111%2", "PI303"),
        ("resource=x&client_id=a;b", "PI303"),
        ("resource=x%0d%0aSet-Cookie:y", "PI303"),
        ("resource=%ff", "PI303"),
        (f"resource={'x' * 9000}", "PI303"),
        (f"resource=x&client_id={NAMED}&msi_res_id={RESOURCE_ID}", "PI304"),
        (f"resource=x&client_id={NAMED}&object_id=1", "PI304"),
    ],
    ids=lambda value: value[:40],
)
async def test_a_wrong_query_is_told_what_is_wrong_with_it(query: str, says: str) -> None:
    async with nmi_server(POD, WEB) as nmi:
        status, error, description = problem(await nmi.get(f"{TOKEN}?{query}"))

    assert (status, error) == (400, "invalid_request")
    assert says in description
    assert nmi.tokens.calls == []


NO_CLIENT = build.assignment(POD, build.identity(client=""))
PRINCIPAL = build.assignment(POD, build.identity(kind=IdentityKind.SERVICE_PRINCIPAL))
ELSEWHERE = build.assignment(POD, build.identity(namespace="elsewhere", namespaced=True))


@pytest.mark.parametrize(
    ("stored", "query", "expected"),
    [
        ((), "", (404, "identity_not_found", "PI307")),
        ((ELSEWHERE,), "", (404, "identity_not_found", "PI307")),
        ((replace(WEB, state=AssignmentState.UNASSIGNED),), "", (404, "identity_not_found", "PI307")),
        ((WEB,), "&client_id=0", (404, "identity_not_found", "PI308")),
        ((WEB,), f"&client_id={build.client_id('other')}", (404, "identity_not_found", "PI308")),
        ((WEB,), f"&object_id={NAMED}", (404, "identity_not_found", "PI308")),
        ((CREATED,), "", (404, "identity_not_assigned", "PI201")),
        ((NO_CLIENT,), "", (403, "identity_not_usable", "PI309")),
        ((PRINCIPAL,), "", (403, "identity_not_usable", "PI312")),
    ],
    ids=lambda value: value[2] if isinstance(value, tuple) and len(value) == 3 else None,
)
async def test_a_pod_without_a_usable_identity_is_told_why(
    stored: tuple[object, ...], query: str, expected: tuple[int, str, str]
) -> None:
    async with nmi_server(POD, *stored, patience=AT_ONCE) as nmi:  # type: ignore[arg-type]
        status, error, description = problem(await nmi.get(ASK + query))

    assert (status, error) == expected[:2]
    assert f"({expected[2]}: " in description
    assert nmi.tokens.calls == []


async def test_what_may_still_come_is_a_503_with_a_time_to_retry_if_the_operator_wants_it() -> None:
    settings = ApiSettings(retry_after_header=True)
    async with nmi_server(POD, OTHER, CREATED, api=settings, patience=AT_ONCE) as nmi:
        waiting, lacking = await nmi.get(), await nmi.get(address="127.1.0.2")
        nmi.cluster.put(NO_CLIENT)
        final = [await nmi.get(), await nmi.get(f"{TOKEN}?resource=")]

    assert [(reply.status, reply.header("retry-after")) for reply in (waiting, lacking)] == [(503, "20")] * 2
    assert [(reply.status, reply.header("retry-after")) for reply in final] == [(403, None), (400, None)]


async def test_instance_metadata_can_be_blocked() -> None:
    async with nmi_server(POD, WEB, api=ApiSettings(block_instance_metadata=True)) as nmi:
        replies = [
            await nmi.get(target, headers=headers)
            for target in ("/metadata/instance", "/Metadata/instance/compute?api-version=2021-02-01")
            for headers in (MARKED, {})
        ]
        others = [await nmi.get("/metadata/versions"), await nmi.get()]

    for reply in replies:
        status, error, description = problem(reply)
        assert (status, error) == (403, "access_denied")
        assert description.startswith("Request blocked by AAD Pod Identity NMI (PI311: ")
    assert [reply.status for reply in others] == [200, 200]
    assert nmi.upstream.targets == ["/metadata/versions"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            TokenRefused(
                "no", status=400, body=b'{"error":"invalid_resource"}', headers=(("content-type", "application/x"),)
            ),
            (400, "application/x", None, b'{"error":"invalid_resource"}'),
        ),
        (Throttled("slow", retry_after_s=2.2), (429, "application/json; charset=utf-8", "3", b"slow (PI321: ")),
        (RefusedError("spec.x is wrong"), (403, "application/json; charset=utf-8", None, b"spec.x is wrong (PI317: ")),
        (TransientError("IMDS is away"), (503, "application/json; charset=utf-8", None, b"IMDS is away (PI313: ")),
    ],
    ids=["refused", "throttled", "unusable", "away"],
)
async def test_what_the_token_service_says_reaches_the_pod(
    error: Exception, expected: tuple[int, str, str | None, bytes]
) -> None:
    async with nmi_server(POD, WEB) as nmi:
        nmi.tokens.fail_next(error)
        reply = await nmi.get()
        await nmi.clock.advance(1)
        again = await nmi.get()

    status, content_type, retry_after, says = expected
    assert (reply.status, reply.header("content-type"), reply.header("retry-after")) == (
        status,
        content_type,
        retry_after,
    )
    assert says in reply.body
    assert again.status == 200


@pytest.mark.parametrize(
    "reason",
    [reason for reason in Reason if reason.code[:3] in ("PI2", "PI3") and reason is not Reason.UPSTREAM_REFUSED],
)
def test_every_reason_of_a_refusal_has_an_answer_with_its_code_or_imds_own_words(reason: Reason) -> None:
    facts = dict.fromkeys(re.findall(r"{(\w+)}", reason.sentence), "x")

    answer = denial(because(reason, **facts))

    words = (reason.code, "Required ", "X-Forwarded-For")
    assert 400 <= answer.status <= 503
    assert any(word.encode() in answer.body for word in words)


def test_an_answer_escapes_what_the_pod_has_sent() -> None:
    body = denial(because(Reason.NO_SUCH_PATH, path='/x"}\n<b>')).body

    assert json.loads(body)["error"] == "Not found"
    assert b"\n" not in body


TOKENS = {
    "all fields": (
        (("client_id", "c"), ("ext_expires_in", "86399"), ("resource", "r"), ("token_type", "Bearer")),
        (
            b'{"access_token":"t","client_id":"c","expires_in":"100","expires_on":"1100","ext_expires_in":"86399",'
            b'"resource":"r","token_type":"Bearer"}'
        ),
    ),
    "no client ID": (
        (("resource", "r"),),
        b'{"access_token":"t","expires_in":"100","expires_on":"1100","resource":"r"}',
    ),
    "nothing else": ((), b'{"access_token":"t","expires_in":"100","expires_on":"1100"}'),
    "odd characters": (
        (("resource", 'a"b\\\u00e9'),),
        b'{"access_token":"t","expires_in":"100","expires_on":"1100","resource":"a\\"b\\\\\\u00e9"}',
    ),
}


@pytest.mark.parametrize(("fields", "body"), TOKENS.values(), ids=TOKENS)
def test_a_token_of_any_source_is_written_in_one_order(fields: tuple[tuple[str, str], ...], body: bytes) -> None:
    assert token_answer([AccessToken("t", 1100.9, fields)], 1000.2).body == body


def test_tokens_of_several_tenants_are_an_array_in_their_order() -> None:
    body = token_answer([AccessToken("main", 1100.0), AccessToken("other", 1200.0)], 1000.0).body

    assert [token["access_token"] for token in json.loads(body)] == ["main", "other"]


def test_a_lifetime_is_never_negative() -> None:
    assert b'"expires_in":"0"' in token_answer([AccessToken("t", 1000.0)], 1001.0).body


def test_an_answer_does_not_show_its_token() -> None:
    assert "secret" not in repr(token_answer([AccessToken("secret", 1000.0)], 0))

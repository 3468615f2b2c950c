"""The corpus of hostile requests against NMI as it runs, on sockets, with both parsers: what nobody may bring about."""

from __future__ import annotations

import http.client
import logging
import re
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from apps.connections import ConnectionLimits
from apps.serving import Scope
from podidentity_core.testing import builders as build
from tests.apps.hostile import FAMILIES, Hostile, May, token
from tests.apps.nmi_server import AT_ONCE, OTHER, OTHERS, POD, WEB, NmiServer, nmi_server
from tests.apps.raw_http import all_parsed, exchange

ENTITLED = POD.ips[0]
BARE = build.pod("bare-0", label="bare", ips=("127.1.0.3",))
"""A pod without an identity."""
IMPATIENT = ConnectionLimits(head_s=0.3, idle_s=0.3, sweep_s=0.05)
FOR_EVERYBODY = re.compile(
    r"/metadata/(instance(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*|versions|attested/document|loadbalancer|scheduledevents)"
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["httptools", "h11"])
async def nmi(request: pytest.FixtureRequest) -> AsyncIterator[NmiServer]:
    """NMI with a pod that has an identity, one that has another, and one that has none."""
    pods = (POD, WEB, OTHER, OTHERS, BARE)
    async with nmi_server(*pods, patience=AT_ONCE, http=request.param, limits=IMPATIENT) as server:
        yield server


async def test_the_corpus_is_large_and_names_each_request_once() -> None:
    names = [case.name for cases in FAMILIES.values() for case in cases]

    assert len(names) == len(set(names)) >= 900


@pytest.mark.parametrize("family", FAMILIES)
async def test_no_request_gets_more_than_it_may(nmi: NmiServer, family: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="apps")
    wrong = []
    for case in FAMILIES[family]:
        caplog.clear()
        nmi.upstream.requests.clear()
        found = [await answered(nmi, case, ENTITLED), await answered(nmi, case, BARE.ips[0])]
        faults = [*told(case, found), *passed_on(case, nmi.upstream.requests), *logged(caplog.records)]
        faults += [] if await is_served(nmi) else ["the next request is not served"]
        wrong += [f"{case.name}: {fault}" for fault in faults]

    assert not wrong, "\n".join(wrong)


async def answered(nmi: NmiServer, case: Hostile, address: str) -> bytes:
    return await exchange(nmi.port, case.raw, address=address, half_close=case.unfinished)


def told(case: Hostile, answers: list[bytes]) -> Iterator[str]:
    """What is wrong with the answers to the pod that has an identity, and to the one that has none."""
    for whose, answer in zip(("the pod's own", "another's"), answers, strict=True):
        try:
            replies = all_parsed(answer, method="HEAD" if case.raw.startswith(b"HEAD") else "GET")
        except http.client.HTTPException as error:
            yield f"no HTTP: {error!r} in {answer[:200]!r}"
            continue
        if any(reply.status >= 500 for reply in replies):
            yield f"answered {[reply.status for reply in replies]}"
        if b"token-" in answer and not (May.TOKEN in case.may and whose == "the pod's own"):
            yield f"{whose} token was given"


def passed_on(case: Hostile, requests: list[Scope]) -> Iterator[str]:
    """What is wrong with the requests that the metadata service got."""
    methods = {"GET", "HEAD"} if case.raw.startswith(b"HEAD") else {"GET"}
    for scope in requests:
        path, headers = scope["raw_path"].decode(), [name for name, _ in scope["headers"]]
        if May.UPSTREAM not in case.may or not FOR_EVERYBODY.fullmatch(path) or scope["method"] not in methods:
            yield f"{scope['method']} {path} was passed on"
        if b"x-forwarded-for" in headers or headers.count(b"metadata") != 1:
            yield f"passed on with {headers}"


def logged(records: list[logging.LogRecord]) -> Iterator[str]:
    """Lines of the log that tell of a fault of ours, or that are more than one."""
    for record in records:
        text = record.getMessage()
        if record.exc_info or not record.name.startswith("apps.nmi"):
            yield f"{record.name} logged {text!r}"
        if len(text.splitlines()) != 1:
            yield f"a line of the log was broken: {text!r}"


async def is_served(nmi: NmiServer) -> bool:
    (reply,) = all_parsed(await exchange(nmi.port, token(), address=ENTITLED))
    return reply.status == 200

"""What reaches the real metadata service through NMI: known paths in their one spelling, and nothing else."""

import asyncio
import json
import logging
from dataclasses import dataclass

import pytest

from apps.serving import Receive, Scope, Send, start_server
from tests.apps.nmi_server import OTHER, OTHERS, POD, VAULT, WEB, nmi_server
from tests.apps.raw_http import DEADLINE_S, MARKED, request, send

ALLOWED = {
    "/metadata/instance": "/metadata/instance",
    "/metadata/instance?api-version=2021-02-01": "/metadata/instance?api-version=2021-02-01",
    "/metadata/instance/compute/vmSize?format=text": "/metadata/instance/compute/vmSize?format=text",
    "/metadata/instance?a=%2e%2e/&b=%5c": "/metadata/instance?a=%2e%2e/&b=%5c",
    "/Metadata/instance": "/metadata/instance",
    "/METADATA//instance/": "/metadata/instance",
    "//metadata/instance/network///interface/0": "/metadata/instance/network/interface/0",
    "/metadata/instance#fragment": "/metadata/instance",
    "/metadata/versions": "/metadata/versions",
    "/metadata/attested/document?api-version=2020-10-01": "/metadata/attested/document?api-version=2020-10-01",
    "/metadata/loadbalancer": "/metadata/loadbalancer",
    "/metadata/scheduledevents": "/metadata/scheduledevents",
    "http://169.254.169.254/metadata/instance": "/metadata/instance",
    "http://elsewhere.example/metadata/instance?x=1": "/metadata/instance?x=1",
}
"""Targets that pods send, and what the metadata service is asked."""

_TOKEN = "metadata/identity/oauth2/token"
HOSTILE = (
    # another separator, or an encoded one (CVE-2022-23551)
    r"/metadata/identity\oauth2/token",
    r"/metadata/identity/oauth2\token",
    r"/metadata\identity/oauth2/token",
    r"/metadata\identity\oauth2\token",
    r"\metadata\identity\oauth2\token",
    r"/metadata/identity/\oauth2/token",
    r"/metadata/identity\\\oauth2\\token/",
    "/metadata/identity%5Coauth2/token",
    "/metadata/identity%5coauth2%5ctoken",
    "/metadata%5Cidentity/oauth2/token",
    "/metadata%2Fidentity%2Foauth2%2Ftoken",
    "/metadata/identity%2foauth2/token",
    "%2Fmetadata/identity/oauth2/token",
    "/metadata/identity%252Foauth2/token",
    "/metadata/identity%255Coauth2/token",
    "/metadata/identity%c0%afoauth2/token",
    "/metadata/identity%ef%bc%8foauth2/token",
    "/metadata/identity%e2%88%95oauth2/token",
    r"/metadata\instance",
    "/metadata%5cinstance",
    "/metadata%2Finstance",
    # letters in another case, or encoded
    "/metadata/Identity/oauth2/token",
    "/metadata/IDENTITY/oauth2/token",
    "/metadata/identity/OAuth2/token",
    "/metadata/identity/oauth2/Token",
    "/metadata/identity/oauth2/TOKEN",
    "/metadata/Instance",
    "/metadata/instancE/compute",
    "/metadata/identity/%6fauth2/token",
    "/metadata/identity/oauth2/%74oken",
    "/%6detadata/identity/oauth2/token",
    "/metadata/%69dentity/oauth2/token",
    "/metadata/%69nstance",
    "/metadata/%2569nstance",
    "/metadata/identity/oauth2/t%6Fken",
    # suffixes, parameters, odd ends
    f"/{_TOKEN}s",
    f"/{_TOKEN}/x",
    f"/{_TOKEN}/..",
    f"/{_TOKEN};x",
    f"/{_TOKEN};/x",
    f"/{_TOKEN}%00",
    f"/{_TOKEN}%3Fresource=x",
    f"/{_TOKEN}%23",
    f"/{_TOKEN}%20",
    f"/{_TOKEN}.",
    f"/{_TOKEN}.json",
    f"/{_TOKEN}%09",
    f"/{_TOKEN}:80",
    f"/{_TOKEN}&x=1",
    f"/{_TOKEN}*",
    "/metadata/identity%23/oauth2/token",
    "/metadata/identity;x=1/oauth2/token",
    "/metadata/identity%0aoauth2/token",
    "/metadata/identity/oauth2%0d%0atoken",
    "/metadata%20/identity/oauth2/token",
    "/metadata/ identity/oauth2/token",
    "/metadata/identity\t/oauth2/token",
    # dots
    f"/./{_TOKEN}",
    f"/../{_TOKEN}",
    f"/x/../{_TOKEN}",
    f"/metadata/../{_TOKEN}",
    "/metadata/./identity/oauth2/token",
    "/metadata/instance/../identity/oauth2/token",
    "/metadata/instance/%2e%2e/identity/oauth2/token",
    "/metadata/instance/.%2e/identity/oauth2/token",
    "/metadata/instance/..%2fidentity/oauth2/token",
    r"/metadata/instance/..\identity\oauth2\token",
    "/metadata/instance/..;/identity/oauth2/token",
    "/metadata/instance/%252e%252e/identity/oauth2/token",
    "/metadata/versions/../identity/oauth2/token",
    "/metadata/instance/...",
    "/metadata/instance/.hidden",
    # in other places
    f"/x/{_TOKEN}",
    f"/metadata/{_TOKEN}",
    "/identity/oauth2/token",
    "/oauth2/token",
    "/metadata/oauth2/token",
    "/metadata/identity/token",
    "/metadata/identity/oauth2",
    "/metadata/identity/oauth2/v2.0/token",
    f"//elsewhere.example/{_TOKEN}",
    f"http://169.254.169.254/x/../{_TOKEN}",
    f"http://169.254.169.254/{_TOKEN}%2f",
    f"http://user@169.254.169.254/x/{_TOKEN}",
    # what else gives credentials, or does something
    "/metadata/identity/issuecredential?cred-api-version=2.0",
    "/metadata/identity/getplatformmetadata?cred-api-version=2.0",
    "/metadata/identity/info",
    "/metadata/identity",
    "/host/token?resource=x",
    "/host/tokenXYZ",
    "/metadata/attested/document/x",
    "/metadata/scheduledevents/x",
    "/metadata/attested",
    "/metadata",
    "/metadata/",
    "/",
    "/latest/meta-data/iam/security-credentials",
    "/computeMetadata/v1/instance",
    "/machine/plugins?comp=nmagent",
    # no path at all
    "*",
    "169.254.169.254:80",
    "x",
    "",
    "?resource=x",
    "/metadata/instance/" + "x" * 2000,
    "/metadata/identity/" + "/" * 2000 + "oauth2/token",
    "/metadata/instance\x00",
    "/metadata/instanc\xe9",
    "/metadata/instance?a b",
)


@pytest.mark.parametrize(("asked", "passed_on"), ALLOWED.items(), ids=ALLOWED)
async def test_known_paths_are_passed_on_in_their_one_spelling(asked: str, passed_on: str) -> None:
    async with nmi_server(POD) as nmi:
        reply = await nmi.get(asked)

    assert (reply.status, reply.header("content-type"), reply.body) == (200, "text/plain", b"from upstream")
    assert nmi.upstream.targets == [passed_on]


def test_there_are_enough_hostile_paths_and_each_is_there_once() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 80


async def test_no_hostile_path_gets_a_token_or_reaches_the_metadata_service(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    wrong = []
    async with nmi_server(POD, WEB, OTHER, OTHERS) as nmi:
        for path in HOSTILE:
            glue = "&" if "?" in path else "?"
            for target in (path, f"{path}{glue}api-version=2018-02-01&resource={VAULT}"):
                reply = await nmi.get(target)
                if reply.status < 400 or b"token-" in reply.body or nmi.upstream.targets or nmi.tokens.calls:
                    wrong.append((target, reply.status, tuple(nmi.upstream.targets)))
                    nmi.upstream.targets.clear()
                    nmi.tokens.calls.clear()

    assert wrong == []


@pytest.mark.parametrize("path", [r"/metadata/identity\oauth2/token", f"/x/{_TOKEN}", f"/{_TOKEN}%00"])
async def test_what_is_like_a_token_path_is_told_the_right_one(path: str) -> None:
    async with nmi_server(POD) as nmi:
        reply = await nmi.get(path)

    assert reply.status == 400
    assert json.loads(reply.body) == {
        "error": "invalid_request",
        "error_description": "Invalid request (PI310: ask for /metadata/identity/oauth2/token exactly)",
    }


async def test_an_unknown_path_is_named() -> None:
    async with nmi_server(POD) as nmi:
        reply = await nmi.get("/doesnotexist")

    assert (reply.status, json.loads(reply.body)["error"]) == (404, "Not found")
    assert b"path /doesnotexist is not served (PI316: " in reply.body


async def test_of_the_headers_only_those_that_imds_reads_are_passed_on() -> None:
    sent = {
        **MARKED,
        "Accept": "text/plain",
        "Accept-Encoding": "gzip",
        "Authorization": "Bearer secret",
        "Cookie": "a=b",
        "X-Custom": "1",
    }
    async with nmi_server(POD) as nmi:
        await nmi.get("/metadata/instance", headers=sent)
        (seen,) = nmi.upstream.requests

    headers = dict(seen["headers"])
    assert seen["method"] == "GET"
    assert (headers.pop(b"metadata"), headers.pop(b"accept")) == (b"true", b"text/plain")
    assert headers.pop(b"accept-encoding") == b"identity"
    assert headers.pop(b"host").startswith(b"127.0.0.1:")
    assert headers.keys() <= {b"connection", b"user-agent"}


@dataclass
class Canned:
    """A metadata service that gives one answer, in the given parts."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    parts: tuple[bytes, ...]

    async def __call__(self, scope: Scope, _: Receive, send_: Send) -> None:
        await send_({"type": "http.response.start", "status": self.status, "headers": list(self.headers)})
        for part in self.parts:
            await send_({"type": "http.response.body", "body": part, "more_body": True})
        await send_({"type": "http.response.body", "body": b""})


ANSWERS = {
    "redirect, not followed": Canned(302, ((b"location", b"http://elsewhere.example/"),), ()),
    "error": Canned(404, ((b"content-type", b"application/json"),), (b'{"error":"Not found"}',)),
    "busy": Canned(429, ((b"retry-after", b"5"), (b"server", b"IMDS/150.870.65.1103")), (b"slow down",)),
    "many parts": Canned(200, ((b"x-custom", b"1"),), tuple(b"%d," % number for number in range(1000))),
    "known length": Canned(200, ((b"content-length", b"3"),), (b"abc",)),
    "nothing": Canned(204, (), ()),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_answers_come_back_as_they_are(answer: Canned) -> None:
    upstream = await start_server(answer, "127.0.0.1", 0, flag="--none")
    async with nmi_server(endpoint=f"http://127.0.0.1:{upstream.port}") as nmi:
        reply = await send(nmi.port, request("/metadata/instance"), address="127.1.0.1")
    await upstream.stop(0)

    assert (reply.status, reply.body) == (answer.status, b"".join(answer.parts))
    for name, value in answer.headers:
        assert reply.header(name.decode()) == value.decode()


async def test_headers_of_the_connection_to_imds_stay_there() -> None:
    answer = Canned(200, ((b"keep-alive", b"timeout=5"), (b"trailer", b"x"), (b"date", b"yesterday")), (b"body",))
    upstream = await start_server(answer, "127.0.0.1", 0, flag="--none")
    async with nmi_server(endpoint=f"http://127.0.0.1:{upstream.port}") as nmi:
        reply = await send(nmi.port, request("/metadata/instance"), address="127.1.0.1")
    await upstream.stop(0)

    assert {name for name, _ in reply.headers} == {"transfer-encoding", "connection"}


async def test_a_metadata_service_that_is_away_is_a_503_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    gone = await start_server(ANSWERS["nothing"], "127.0.0.1", 0, flag="--none")
    await gone.stop(0)
    async with nmi_server(endpoint=f"http://127.0.0.1:{gone.port}") as nmi:
        reply = await send(nmi.port, request("/metadata/instance"), address="127.1.0.1")

    assert reply.status == 503
    assert reply.header("content-length") == str(len(reply.body))
    assert json.loads(reply.body)["error"] == "temporarily_unavailable"
    assert "PI313" in json.loads(reply.body)["error_description"]
    assert "failed executing request for /metadata/instance" in caplog.text


async def test_an_answer_that_breaks_off_breaks_off_for_the_pod_too(caplog: pytest.LogCaptureFixture) -> None:
    """A pod must not take half a document for a whole one."""

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
        await writer.drain()
        writer.close()

    upstream = await asyncio.start_server(half, "127.0.0.1", 0)
    async with (
        nmi_server(endpoint=f"http://127.0.0.1:{upstream.sockets[0].getsockname()[1]}") as nmi,
        asyncio.timeout(DEADLINE_S),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", nmi.port)
        writer.write(request("/metadata/instance"))
        raw = await reader.read()
        writer.close()
    upstream.close()

    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"content-length: 100" in head
    assert len(body) < 100


async def test_a_pod_that_leaves_ends_the_request_to_imds() -> None:
    """Scheduled events take up to two minutes: a pod that asks again and again must not pile up connections."""
    asked, left = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        left.set()
        writer.close()

    upstream = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with (
        nmi_server(endpoint=f"http://127.0.0.1:{upstream.sockets[0].getsockname()[1]}") as nmi,
        asyncio.timeout(5),
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", nmi.port)
        writer.write(request("/metadata/scheduledevents"))
        await asked.wait()
        writer.close()
        await left.wait()
    upstream.close()

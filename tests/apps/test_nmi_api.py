"""NMI's API through the real server, asked from several pods' addresses: whose request it is, and how long it waits."""

import asyncio
import json
import logging
from dataclasses import replace

import pytest

from apps.nmi.api import ApiSettings
from podidentity_core.model import PodPhase
from podidentity_core.testing import builders as build
from tests.apps.nmi_server import (
    ASK,
    AT_ONCE,
    CREATED,
    NAMED,
    OTHER,
    OTHERS,
    POD,
    RESOURCE_ID,
    TOKEN,
    VAULT,
    WEB,
    nmi_server,
    problem,
)
from tests.apps.raw_http import DEADLINE_S, MARKED, connect, request


async def test_the_lifetime_of_a_kept_token_is_that_of_the_moment() -> None:
    async with nmi_server(POD, WEB) as nmi:
        await nmi.get()
        await nmi.clock.advance(82)
        body = json.loads((await nmi.get()).body)

    assert (body["access_token"], body["expires_in"], body["expires_on"]) == ("token-1", "86318", "1700086400")
    assert len(nmi.tokens.calls) == 1


async def test_pods_are_told_apart_by_their_addresses_and_by_nothing_that_they_say() -> None:
    lies = {**MARKED, "Host": "127.1.0.2", "X-Real-IP": "127.1.0.2", "Forwarded": "for=127.1.0.2"}
    async with nmi_server(POD, OTHER, WEB, OTHERS) as nmi:
        replies = [await nmi.get(address="127.1.0.1", headers=lies), await nmi.get(address="127.1.0.2")]

    assert [json.loads(reply.body)["client_id"] for reply in replies] == [NAMED, build.client_id("other")]


@pytest.mark.parametrize(
    "query",
    [
        f"client_id={NAMED}",
        f"client_id={NAMED.upper()}",
        f"msi_res_id={RESOURCE_ID}",
        f"mi_res_id={RESOURCE_ID.upper()}",
        f"msi_res_id={RESOURCE_ID.replace('/', '%2F')}",
        "client_id=",
        "unheard_of=x&bypass_cache=true",
    ],
)
async def test_an_identity_can_be_named_in_these_ways(query: str) -> None:
    async with nmi_server(POD, WEB) as nmi:
        reply = await nmi.get(f"{ASK}&{query}")

    assert json.loads(reply.body)["client_id"] == NAMED


@pytest.mark.parametrize("path", ["/Metadata/identity/oauth2/token", f"{TOKEN}/", "//metadata//identity/oauth2/token"])
async def test_spellings_that_mean_the_token_path_to_everybody_are_served(path: str) -> None:
    async with nmi_server(POD, WEB) as nmi:
        assert (await nmi.get(f"{path}?resource=x")).status == 200


async def test_of_two_metadata_headers_the_first_counts() -> None:
    async with nmi_server(POD, WEB) as nmi:
        statuses = [
            (await nmi.get(headers={"Metadata": first, "metadata": second})).status
            for first, second in (("true", "false"), ("false", "true"))
        ]

    assert statuses == [200, 400]


@pytest.mark.parametrize(
    "pods",
    [
        (),
        (replace(POD, phase=PodPhase.SUCCEEDED),),
        (replace(POD, phase=PodPhase.FAILED),),
        (replace(POD, host_network=True),),
    ],
    ids=["none", "succeeded", "failed", "host network"],
)
async def test_an_address_without_a_pod_is_refused_after_a_short_wait(pods: tuple[object, ...]) -> None:
    async with nmi_server(*pods, WEB) as nmi:  # type: ignore[arg-type]
        asking = asyncio.create_task(nmi.get())
        await nmi.waiting()
        await nmi.clock.advance(1.2)
        status, error, description = problem(await asking)

    assert (status, error) == (404, "pod_not_found")
    assert "no running pod with address 127.1.0.1 is known on node node-1 (PI305: " in description


async def test_an_address_that_two_pods_claim_gets_nothing_and_learns_nothing_about_them() -> None:
    async with nmi_server(POD, replace(OTHER, ips=POD.ips), WEB, OTHERS) as nmi:
        reply = await nmi.get()
        nmi.cluster.remove(POD)
        later = await nmi.get()

    status, error, description = problem(reply)
    assert (status, error) == (503, "pod_not_found")
    assert "several running pods on node node-1 claim address 127.1.0.1 (PI306: " in description
    assert POD.name not in description
    assert json.loads(later.body)["client_id"] == build.client_id("other")


RULE = build.exception_rule(pod_labels={"app": "agent"})
AGENT = build.pod("agent", label=None, labels={"app": "Agent"}, ips=("127.1.0.5",))
MIC = build.pod("mic-0", label=None, owner_replica_set="mic-5d9c7b", ips=("127.1.0.6",))


@pytest.mark.parametrize("pod", [AGENT, MIC], ids=["exception rule", "MIC"])
async def test_excepted_pods_get_the_nodes_own_tokens(pod: object) -> None:
    address = pod.ips[0]  # type: ignore[attr-defined]
    async with nmi_server(AGENT, MIC, RULE) as nmi:
        replies = [
            await nmi.get(ASK + query, address=address)
            for query in ("", "&client_id=any", f"&msi_res_id={RESOURCE_ID}")
        ]

    assert [reply.status for reply in replies] == [200] * 3
    assert [call.who for call in nmi.tokens.calls] == ["", "any", RESOURCE_ID]


@pytest.mark.parametrize(
    "pod",
    [
        build.pod("agent", namespace="elsewhere", label=None, labels={"app": "agent"}, ips=POD.ips),
        build.pod("micro", label=None, owner_replica_set="microservice-5d9c7b", ips=POD.ips),
        build.pod("mic-0", namespace="elsewhere", label=None, owner_replica_set="mic-5d9c7b", ips=POD.ips),
        build.pod("mic-0", label=None, ips=POD.ips),
    ],
    ids=["rule of another namespace", "microservice", "mic in another namespace", "named mic"],
)
async def test_pods_that_only_look_excepted_do_not(pod: object) -> None:
    async with nmi_server(pod, RULE, patience=AT_ONCE) as nmi:  # type: ignore[arg-type]
        assert problem(await nmi.get())[:2] == (404, "identity_not_found")
    assert nmi.tokens.calls == []


async def test_the_end_of_a_rule_ends_the_service_at_once() -> None:
    async with nmi_server(AGENT, RULE, patience=AT_ONCE) as nmi:
        before = await nmi.get(address="127.1.0.5")
        nmi.cluster.remove(RULE)
        after = await nmi.get(address="127.1.0.5")

    assert (before.status, after.status) == (200, 404)


async def test_a_request_before_its_assignment_is_answered_when_that_comes_and_not_later() -> None:
    async with nmi_server(POD) as nmi:
        asking = [asyncio.create_task(nmi.get()) for _ in range(50)]
        await nmi.waiting(50)
        nmi.cluster.put(CREATED)
        await nmi.clock.advance(1)
        assert not any(task.done() for task in asking)
        nmi.cluster.put(WEB)
        replies = await asyncio.gather(*asking)

    assert [reply.status for reply in replies] == [200] * 50
    assert len(nmi.tokens.calls) == 1
    assert nmi.clock.monotonic_s() == 1
    assert nmi.waiters == 0


async def test_a_request_before_its_pod_is_known_waits_for_the_pod() -> None:
    async with nmi_server(WEB) as nmi:
        asking = asyncio.create_task(nmi.get())
        await nmi.waiting()
        nmi.cluster.put(POD)

        assert (await asking).status == 200
    assert nmi.clock.monotonic_s() == 0


async def test_a_request_before_the_cluster_is_known_waits_for_that() -> None:
    async with nmi_server(POD, WEB, following=False) as nmi:
        asking = asyncio.create_task(nmi.get())
        await nmi.waiting()
        work = asyncio.create_task(nmi.service.run())

        assert (await asking).status == 200
        work.cancel()


@pytest.mark.parametrize(
    ("stored", "patience_s", "code"), [((), 80, "PI307"), ((CREATED,), 100, "PI201")], ids=["absent", "created"]
)
async def test_patience_ends_after_the_times_of_the_original(
    stored: tuple[object, ...], patience_s: float, code: str
) -> None:
    async with nmi_server(POD, *stored) as nmi:  # type: ignore[arg-type]
        asking = asyncio.create_task(nmi.get())
        await nmi.waiting()
        await nmi.clock.advance(patience_s - 1)
        assert not asking.done()
        await nmi.clock.advance(1)
        status, _, description = problem(await asking)

    assert status == 404
    assert f"({code}: " in description


async def test_a_client_that_hangs_up_ends_its_wait_and_nobody_elses() -> None:
    async with nmi_server(POD) as nmi:
        staying = asyncio.create_task(nmi.get())
        await nmi.waiting(1)
        _, writer = await connect(nmi.port, "127.1.0.1")
        writer.write(request(ASK))
        await nmi.waiting(2)

        writer.close()
        await nmi.waiting(1)
        nmi.cluster.put(WEB)

        assert (await staying).status == 200
    assert nmi.clock.next_wake_s() is None


async def test_a_withdrawn_assignment_ends_the_service_at_once_though_the_token_is_kept() -> None:
    async with nmi_server(POD, WEB, patience=AT_ONCE) as nmi:
        before = await nmi.get()
        nmi.cluster.remove(WEB)
        after = await nmi.get()

    assert (before.status, after.status) == (200, 404)


async def test_a_pod_that_takes_over_an_address_inherits_nothing() -> None:
    async with nmi_server(POD, WEB, OTHERS, patience=AT_ONCE) as nmi:
        await nmi.get()
        nmi.cluster.remove(POD)
        nmi.cluster.put(replace(OTHER, ips=POD.ips))
        body = json.loads((await nmi.get()).body)

    assert body["client_id"] == build.client_id("other")


async def test_connections_are_kept_and_answer_one_request_after_the_other() -> None:
    raw = request(ASK).replace(b"Connection: close\r\n", b"")
    async with nmi_server(POD, WEB) as nmi, asyncio.timeout(DEADLINE_S):
        reader, writer = await connect(nmi.port, "127.1.0.1")
        writer.write(raw * 3)
        heads = []
        for _ in range(3):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            assert json.loads(await reader.readexactly(length))["client_id"] == NAMED
            heads.append(head.partition(b"\r\n")[0])
        writer.close()

    assert heads == [b"HTTP/1.1 200 OK"] * 3


async def test_each_token_request_is_logged_and_measured_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="apps.nmi")
    async with nmi_server(POD, WEB, patience=AT_ONCE) as nmi:
        await nmi.get()
        await nmi.get()
        await nmi.get(f"{ASK}&client_id=0")
        metrics = nmi.meter.render().decode()

    good, kept, bad = [record for record in caplog.records if record.name == "apps.nmi.audit"]
    assert good.levelno == logging.INFO
    assert good.getMessage() == (
        f"status (200) took 0 ns for req.method=GET reg.path={TOKEN} req.remote=127.1.0.1 "
        "pod=default/web-0 uid=uid-of-default-web-0 serviceaccount=- "
        f"identity=default/web type=0 clientid={NAMED[:4]}##### REDACTED #####{NAMED[-4:]} "
        f"resource={VAULT} token=fetched"
    )
    assert kept.getMessage().endswith("token=kept")
    assert bad.levelno == logging.ERROR
    assert bad.getMessage().startswith(f"status (404) took 0 ns for req.method=GET reg.path={TOKEN} ")
    assert f'resource={VAULT} reason=PI308 error="no azure identity found' in bad.getMessage()
    assert 'status_code="200"} 2' in metrics
    assert 'status_code="404"} 1' in metrics
    assert 'aadpodidentity_nmi_refused_requests_count{namespace="default",reason="PI308"} 1' in metrics
    assert 'aadpodidentity_nmi_token_cache_count{result="hit"} 1' in metrics


async def test_a_pod_cannot_write_fields_of_the_log_line(caplog: pytest.LogCaptureFixture) -> None:
    async with nmi_server(POD, WEB) as nmi:
        caplog.set_level(logging.INFO, logger="apps.nmi")
        await nmi.get(f"{TOKEN}?resource=x%20pod=default/other%22")

    (record,) = [record for record in caplog.records if record.name == "apps.nmi.audit"]
    assert 'resource="x pod=default/other\\"" token=fetched' in record.getMessage()


NAMED_POD = {"podns": "default", "podname": POD.name}


class TestHostToken:
    """`/host/token`, for programs of the node: they name the pod on whose behalf they ask."""

    async def test_it_has_the_token_and_the_client_id(self) -> None:
        async with nmi_server(POD, WEB) as nmi:
            reply = await nmi.get(f"/host/token?resource={VAULT}", headers=NAMED_POD, address="127.0.0.1")

        body = json.loads(reply.body)
        assert (reply.status, list(body)) == (200, ["token", "clientid"])
        assert (body["token"]["access_token"], body["clientid"]) == ("token-1", NAMED)

    @pytest.mark.parametrize(
        ("target", "headers", "address", "expected"),
        [
            (f"/host/token?resource={VAULT}", NAMED_POD, "127.1.0.1", (403, "access_denied", "PI318")),
            (f"/host/token?resource={VAULT}", {}, "127.0.0.1", (400, "invalid_request", "PI319")),
            (f"/host/token?resource={VAULT}", {"podns": "default"}, "127.0.0.1", (400, "invalid_request", "PI319")),
            (
                f"/host/token?resource={VAULT}",
                {**NAMED_POD, "podname": "x"},
                "127.0.0.1",
                (404, "identity_not_found", "PI307"),
            ),
            (f"/host/token?resource={VAULT}&client_id=0", NAMED_POD, "127.0.0.1", (404, "identity_not_found", "PI308")),
            ("/host/token?client_id=1;2&resource=x", NAMED_POD, "127.0.0.1", (400, "invalid_request", "PI303")),
        ],
        ids=lambda value: value[2] if isinstance(value, tuple) else None,
    )
    async def test_what_it_does_not_serve(
        self, target: str, headers: dict[str, str], address: str, expected: tuple[int, str, str]
    ) -> None:
        settings = ApiSettings(retry_after_header=True)
        async with nmi_server(POD, WEB, api=settings, patience=AT_ONCE) as nmi:
            status, error, description = problem(await nmi.get(target, headers=headers, address=address))

        assert (status, error) == expected[:2]
        assert f"({expected[2]}: " in description
        assert nmi.tokens.calls == []

    async def test_it_can_be_switched_off(self) -> None:
        async with nmi_server(POD, WEB, api=ApiSettings(host_token=False)) as nmi:
            reply = await nmi.get(f"/host/token?resource={VAULT}", headers={**NAMED_POD, **MARKED}, address="127.0.0.1")

        assert problem(reply)[:2] == (404, "Not found")


async def test_no_token_is_ever_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with nmi_server(POD, WEB, RULE, AGENT) as nmi:
        for address in ("127.1.0.1", "127.1.0.5"):
            assert b"token-" in (await nmi.get(address=address)).body

    assert "token-1" not in caplog.text
    assert "token-2" not in caplog.text


async def test_a_failure_inside_is_a_500_without_detail_and_the_next_request_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with nmi_server(POD, WEB) as nmi:
        nmi.tokens.fail_next(RuntimeError("a bug that names a secret"))
        broken = await nmi.get()
        working = await nmi.get()

    assert (broken.status, working.status) == (500, 200)
    assert b"secret" not in broken.body
    assert "a bug that names a secret" in caplog.text

"""The real programs on the sandbox, asked by the real SDK from pods' addresses."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import jwt
import pytest
import pytest_asyncio
from azure.core.exceptions import ClientAuthenticationError
from azure.core.pipeline.transport import AioHttpTransport, RequestsTransport
from azure.identity import CredentialUnavailableError, ManagedIdentityCredential
from azure.identity.aio import ManagedIdentityCredential as AioManagedIdentityCredential
from requests import Session
from requests.adapters import HTTPAdapter

from apps.sandbox.hosts import UserAssigned
from tests.apps.daemons import until
from tests.apps.stage import VAULT, Stage, now_s

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCOPE = f"{VAULT}/.default"
FIRST_TOKEN_S = 1.0
"""How long after ARM's report that the operation is done a token may take, at most."""


class FromAddress(HTTPAdapter):
    """Connects from a pod's address."""

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, source_address=(self.address, 0))


def get_token(address: str, **selector: Any) -> str:
    """Get a token through azure-identity, as a pod at *address* does."""
    with Session() as session:
        session.mount("http://", FromAddress(address))
        transport = RequestsTransport(session=session, session_owner=False)
        return ManagedIdentityCredential(transport=transport, retry_total=0, **selector).get_token(SCOPE).token


async def blocking(address: str, **selector: Any) -> str:
    return await asyncio.to_thread(get_token, address, **selector)


async def aio(address: str, **selector: Any) -> str:
    """Get a token through azure-identity's asyncio half."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(address, 0))) as session:
        transport = AioHttpTransport(session=session, session_owner=False)
        async with AioManagedIdentityCredential(transport=transport, retry_total=0, **selector) as credential:
            return (await credential.get_token(SCOPE)).token


def client_of(token: str) -> str:
    """The client ID of the identity that a token is for."""
    return str(jwt.decode(token, options={"verify_signature": False})["appid"])


def client_id(identity: UserAssigned) -> str:
    return identity.principal.client_id


@pytest.fixture(autouse=True)
def _metadata_authority(shared: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without interception, pods find NMI by the variable that the SDKs heed."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", f"http://127.0.0.1:{shared.nmi_port}")


@pytest.fixture(autouse=True)
def _fresh_budget(shared: Stage) -> None:
    """All tests change one host, and none shall wait for the polls of another."""
    shared.forget_polls()


@pytest.mark.parametrize("ask", [blocking, aio], ids=["sync", "aio"])
async def test_a_pod_gets_a_token_of_its_own_identity(shared: Stage, ask: Any) -> None:
    name = f"default-{ask.__name__}"
    identity = shared.identity(name)
    other = shared.identity(f"{name}-other")
    address, others = await shared.pod(name), await shared.pod(f"{name}-other")

    tokens = await asyncio.gather(ask(address), ask(others))

    assert [client_of(token) for token in tokens] == [client_id(identity), client_id(other)]
    assert jwt.decode(tokens[0], options={"verify_signature": False})["aud"] == VAULT


@dataclass
class Pair:
    """A pod with two identities, by their names."""

    address: str
    identities: Mapping[str, UserAssigned]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(shared: Stage) -> Pair:
    identities = {letter: shared.identity(f"pair-{letter}", selector="pair") for letter in "ab"}
    return Pair(await shared.pod("pair"), identities)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("ask", [blocking, aio], ids=["sync", "aio"])
async def test_a_pod_with_two_identities_gets_the_one_that_it_names_by_client_id(
    pair: Pair, ask: Any, name: str
) -> None:
    wanted = client_id(pair.identities[name])

    assert client_of(await ask(pair.address, client_id=wanted)) == wanted


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("ask", [blocking, aio], ids=["sync", "aio"])
async def test_a_pod_with_two_identities_gets_the_one_that_it_names_by_resource_id(
    pair: Pair, ask: Any, name: str
) -> None:
    """The two halves of azure-identity spell the parameter in different ways."""
    wanted = pair.identities[name]

    token = await ask(pair.address, identity_config={"resource_id": wanted.resource_id})

    assert client_of(token) == client_id(wanted)


async def test_an_identity_of_another_pod_is_refused_in_words_that_the_sdk_prints(pair: Pair, shared: Stage) -> None:
    """In IMDS's shape; a 404 the SDK would try again, so it is asked not to."""
    shared.identity("foreign")
    await shared.pod("foreign")

    reply = await shared.token(pair.address, client_id=client_id(shared.identity_named("foreign")))

    assert reply.status == 404
    assert json.loads(reply.body)["error"] == "identity_not_found"
    assert "default/pair (PI308: " in json.loads(reply.body)["error_description"]


@pytest.mark.parametrize("ask", [blocking, aio], ids=["sync", "aio"])
async def test_a_pod_without_an_identity_gets_an_error_that_the_sdk_prints(shared: Stage, ask: Any) -> None:
    address = await shared.pod(f"without-{ask.__name__}")

    with pytest.raises((CredentialUnavailableError, ClientAuthenticationError)) as caught:
        await ask(address)

    assert f"no azure identity is assigned to pod default/without-{ask.__name__} (PI307: " in str(caught.value)


async def test_the_first_token_comes_by_event_as_soon_as_arm_reports_the_end(
    shared: Stage, record_property: Callable[[str, object], None]
) -> None:
    shared.identity("swift")
    began_s = now_s()
    address = await shared.pod("swift")

    reply = await shared.token(address)
    answered_s = now_s()

    (operation,) = shared.patches(began_s)
    assert reply.status == 200
    assert operation.reported_at is not None
    lag_s = answered_s - operation.reported_at
    record_property("first token after ARM's report, s", round(lag_s, 4))
    print(f"first token {lag_s * 1000:.1f} ms after ARM reported the end of the operation")
    assert 0 < lag_s <= FIRST_TOKEN_S


async def test_only_the_operation_is_polled(shared: Stage) -> None:
    """While a pod waits, nothing else is asked twice: not the API server, not the host, not the metadata service."""
    shared.identity("quiet")
    began_s = now_s()
    address = await shared.pod("quiet")
    await shared.token(address)

    asked = Counter(
        (seen.server, seen.method, seen.path)
        for seen in shared.sandbox.faults.seen()
        if seen.at >= began_s and seen.server != "entra" and "/leases/" not in seen.path and "/events" not in seen.path
    )
    again = {asked_for[2].rpartition("/")[0] for asked_for, times in asked.items() if times > 1}

    assert {path.rpartition("/")[2] for path in again} <= {"operations"}


async def test_an_assignment_costs_two_writes_and_one_if_its_host_has_the_identity_already(shared: Stage) -> None:
    shared.identity("cost")
    began_s = now_s()
    await shared.token(await shared.pod("cost"))
    await until(lambda: shared.events(began_s), "an event")
    new = shared.writes(began_s)
    second_s = now_s()
    await shared.token(await shared.pod("cost-2", "cost"))
    await until(lambda: shared.events(second_s), "an event")

    assert new == ["POST", "PATCH cost-default-cost"]
    assert len(shared.patches(began_s)) == 1
    assert shared.writes(second_s) == ["POST"]
    assert shared.patches(second_s) == []
    assert len(shared.events(second_s)) == 1


async def test_an_identity_leaves_its_host_with_its_last_pod(shared: Stage) -> None:
    identity = shared.identity("leaving")
    addresses = [await shared.pod("leaving-1", "leaving"), await shared.pod("leaving-2", "leaving")]
    for address in addresses:
        assert (await shared.token(address)).status == 200
    began_s = now_s()

    shared.delete_pod("leaving-1")
    await until(lambda: "leaving-1/leaving" not in shared.assignments)
    still_s = now_s()
    assert identity.resource_id in shared.host.identity.assigned
    assert (await shared.token(addresses[1])).status == 200
    shared.delete_pod("leaving-2")
    await until(lambda: "leaving-2/leaving" not in shared.assignments)

    assert identity.resource_id not in shared.host.identity.assigned
    assert shared.patches(began_s)[0].started_at >= still_s
    assert "leaving" not in "".join(shared.assignments)


async def test_a_deleted_pods_address_gets_no_token_any_more(shared: Stage) -> None:
    shared.identity("gone")
    address = await shared.pod("gone")
    assert (await shared.token(address)).status == 200

    shared.delete_pod("gone")
    await until(lambda: "gone/gone" not in shared.assignments)

    assert (await shared.token(address)).status == 404


async def test_a_binding_that_goes_takes_the_tokens_with_it(shared: Stage) -> None:
    shared.identity("revoked")
    address = await shared.pod("revoked")
    assert (await shared.token(address)).status == 200

    shared.delete("azureidentitybindings", "revoked")
    await until(lambda: "revoked/revoked" not in shared.assignments)

    assert (await shared.token(address)).status == 404


async def test_many_pods_at_once_share_few_writes_to_the_host(shared: Stage) -> None:
    for number in range(8):
        shared.identity(f"crowd-{number}")
    began_s = now_s()
    addresses = await asyncio.gather(*(shared.pod(f"crowd-{number}") for number in range(8)))

    replies = await asyncio.gather(*(shared.token(address) for address in addresses))

    assert [reply.status for reply in replies] == [200] * 8
    assert len(shared.patches(began_s)) <= 2
    assert {client_of(json.loads(reply.body)["access_token"]) for reply in replies} == {
        client_id(shared.identity_named(f"crowd-{number}")) for number in range(8)
    }

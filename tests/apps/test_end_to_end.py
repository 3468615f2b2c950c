"""The real programs on the sandbox, asked by the real SDK from pods' addresses."""

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import jwt
import pytest
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
FIRST_TOKEN_S = 0.2
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


@pytest.mark.parametrize("ask", [blocking, aio], ids=["sync", "aio"])
async def test_a_pod_gets_a_token_of_its_own_identity(shared: Stage, ask: Any) -> None:
    name = f"default-{ask.__name__}"
    identity = shared.identity(name)
    other = shared.identity(f"{name}-other")
    address, others = await shared.pod(name), await shared.pod(f"{name}-other")

    tokens = await asyncio.gather(ask(address), ask(others))

    assert [client_of(token) for token in tokens] == [client_id(identity), client_id(other)]
    assert jwt.decode(tokens[0], options={"verify_signature": False})["aud"] == VAULT


BY_RESOURCE_ID = {blocking: "resource_id", aio: "resource_id"}


@pytest.mark.parametrize("named", ["a", "b"])
@pytest.mark.parametrize("ask", [blocking, aio], ids=["sync", "aio"])
@pytest.mark.parametrize("by", ["client_id", "resource_id"])
async def test_a_pod_with_two_identities_gets_the_one_that_it_names(
    shared: Stage, ask: Any, by: str, named: str
) -> None:
    pair = {letter: shared.sandbox.azure.identities.get(_pair_key(shared, letter)) for letter in "ab"}
    if None in pair.values():
        pair = {letter: shared.identity(f"pair-{letter}", selector="pair") for letter in "ab"}
        await shared.pod("pair")
    address = shared.sandbox.cluster.objects("pods")
    wanted = pair[named]
    assert wanted is not None
    ip = next(body["status"]["podIP"] for body in address if body["metadata"]["name"] == "pair")
    selectors: Mapping[str, Mapping[str, Any]] = {
        "client_id": {"client_id": client_id(wanted)},
        "resource_id": {"identity_config": {"resource_id": wanted.resource_id}},
    }

    assert client_of(await ask(ip, **selectors[by])) == client_id(wanted)


def _pair_key(shared: Stage, letter: str) -> str:
    from apps.sandbox.options import identity_id

    return identity_id(f"pair-{letter}").lower()

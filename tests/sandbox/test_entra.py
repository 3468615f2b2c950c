"""Entra ID over TLS: tokens of both versions, refusals, discovery."""

import time

import httpx
import jwt
import pytest

from apps.sandbox.options import TENANT
from apps.sandbox.sandbox import Sandbox

CLIENT = "0c0c0c0c-0000-4000-8000-000000000001"
SECRET = "the secret of the test"
GOOD = {"grant_type": "client_credentials", "client_id": CLIENT, "client_secret": SECRET}
SCOPE = {"scope": "https://vault.azure.net/.default"}


@pytest.fixture
def url(sandbox: Sandbox) -> str:
    """The tenant's address; the application is registered in it."""
    sandbox.entra.register(TENANT, CLIENT, SECRET)
    return f"{sandbox.entra_url}/{TENANT}"


async def test_v1_answers_with_strings_and_v2_with_numbers(azure: httpx.AsyncClient, url: str) -> None:
    resource = {"resource": "https://vault.azure.net"}
    first = (await azure.post(f"{url}/oauth2/token", data={**GOOD, **resource})).json()
    second = (await azure.post(f"{url}/oauth2/v2.0/token", data={**GOOD, **SCOPE})).json()

    assert (first["expires_in"], second["expires_in"]) == ("3599", 3599)
    assert first["resource"] == "https://vault.azure.net"
    assert int(first["expires_on"]) == pytest.approx(time.time() + 3599, abs=5)
    assert set(second) == {"token_type", "expires_in", "ext_expires_in", "access_token"}


async def test_tokens_are_signed_with_the_published_key(azure: httpx.AsyncClient, url: str) -> None:
    scope = {"scope": "https://management.azure.com//.default"}
    text = (await azure.post(f"{url}/oauth2/v2.0/token", data={**GOOD, **scope})).json()["access_token"]
    about = (await azure.get(f"{url}/v2.0/.well-known/openid-configuration")).json()
    keys = (await azure.get(about["jwks_uri"])).json()["keys"]

    key = jwt.PyJWK(next(key for key in keys if key["kid"] == jwt.get_unverified_header(text)["kid"]))
    claims = jwt.decode(text, key.key, algorithms=["RS256"], audience="https://management.azure.com/")

    assert (claims["appid"], claims["tid"], claims["iss"]) == (CLIENT, TENANT, about["issuer"])
    assert about["token_endpoint"] == f"{url}/oauth2/v2.0/token"


@pytest.mark.parametrize(
    ("path", "form", "status", "error", "code"),
    [
        ("v2.0/token", {**GOOD, **SCOPE, "client_secret": "wrong"}, 401, "invalid_client", 7000215),
        ("token", {**GOOD, "resource": "x", "client_secret": "wrong"}, 401, "invalid_client", 7000215),
        ("v2.0/token", {"grant_type": "client_credentials", "client_id": CLIENT}, 401, "invalid_client", 7000218),
        ("v2.0/token", {**GOOD, **SCOPE, "client_id": "x"}, 400, "unauthorized_client", 700016),
        ("v2.0/token", GOOD, 400, "invalid_request", 900144),
        ("token", GOOD, 400, "invalid_request", 900144),
        ("v2.0/token", {**GOOD, "resource": "https://x"}, 400, "invalid_request", 901002),
        ("v2.0/token", {**GOOD, "scope": "https://x"}, 400, "invalid_scope", 70011),
        ("v2.0/token", {**GOOD, **SCOPE, "grant_type": "password"}, 400, "unsupported_grant_type", 70003),
    ],
)
async def test_refusals(
    azure: httpx.AsyncClient, url: str, path: str, form: dict[str, str], status: int, error: str, code: int
) -> None:
    answer = await azure.post(f"{url}/oauth2/{path}", data=form)

    body = answer.json()
    assert (answer.status_code, body["error"], body["error_codes"]) == (status, error, [code])
    assert body["error_description"].startswith(f"AADSTS{code}: ")
    assert SECRET not in answer.text


async def test_an_unknown_tenant_is_refused_until_it_is_added(azure: httpx.AsyncClient, sandbox: Sandbox) -> None:
    url = f"{sandbox.entra_url}/other.example/oauth2/v2.0/token"
    before = (await azure.post(url, data={**GOOD, **SCOPE})).json()
    sandbox.entra.register("other.example", CLIENT, SECRET)
    after = await azure.post(url, data={**GOOD, **SCOPE})

    assert before["error_codes"] == [90002]
    assert after.status_code == 200


async def test_a_secret_can_come_as_basic_authentication(azure: httpx.AsyncClient, url: str) -> None:
    form = {"grant_type": "client_credentials", **SCOPE}

    answer = await azure.post(f"{url}/oauth2/v2.0/token", data=form, auth=(CLIENT, SECRET))

    assert answer.status_code == 200


async def test_instance_discovery(azure: httpx.AsyncClient, sandbox: Sandbox) -> None:
    query = {"api-version": "1.1", "authorization_endpoint": "https://x/y"}

    answer = await azure.get(f"{sandbox.entra_url}/common/discovery/instance", params=query)

    assert answer.json()["tenant_discovery_endpoint"].startswith(sandbox.entra_url)

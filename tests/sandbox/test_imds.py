"""The metadata service of a node: which tokens it gives, its errors to the letter, what it tells about the node."""

import asyncio
import dataclasses
import time
from typing import Any

import httpx
import jwt
import pytest

from apps.sandbox.options import TENANT, NodeSpec, identity_id, scale_set_nodes, vm_id
from apps.sandbox.sandbox import Sandbox, SandboxOptions

TOKEN = "/metadata/identity/oauth2/token"
ASKED = {"api-version": "2018-02-01", "resource": "https://vault.azure.net"}
NOT_FOUND = {"error": "invalid_request", "error_description": "Identity not found"}


@pytest.fixture
def options(options: SandboxOptions) -> SandboxOptions:
    """A scale set with one node, and a VM."""
    return dataclasses.replace(options, nodes=(*scale_set_nodes(1), NodeSpec("vm-node", vm_id("vm1"))))


def attach(sandbox: Sandbox, *names: str) -> list[Any]:
    """Put identities on the scale set and return them."""
    made = [sandbox.azure.add_identity(identity_id(name)) for name in names]
    sandbox.azure.attach(sandbox.options.nodes[0].host_id, [entry.resource_id for entry in made])
    return made


async def test_an_attached_identity_gets_a_signed_token_of_strings(imds: httpx.AsyncClient, sandbox: Sandbox) -> None:
    (identity,) = attach(sandbox, "app")

    answer = await imds.get(TOKEN, params=ASKED)

    body = answer.json()
    assert list(body) == [
        *("access_token", "client_id", "expires_in", "expires_on"),
        *("ext_expires_in", "not_before", "resource", "token_type"),
    ]
    assert {type(value) for value in body.values()} == {str}
    assert int(body["expires_on"]) - int(body["not_before"]) == 86_700
    assert int(body["expires_on"]) == pytest.approx(time.time() + 86_400, abs=5)
    claims = jwt.decode(body["access_token"], options={"verify_signature": False})
    principal = identity.principal
    assert (claims["aud"], claims["appid"]) == ("https://vault.azure.net", principal.client_id)
    assert (claims["oid"], claims["xms_mirid"]) == (principal.object_id, identity.resource_id)
    assert answer.headers["server"].startswith("IMDS/")
    assert (await imds.get(TOKEN, params=ASKED)).json()["access_token"] == body["access_token"]


@pytest.mark.parametrize("parameter", ["client_id", "object_id", "msi_res_id", "mi_res_id"])
async def test_an_identity_can_be_named_in_four_ways(imds: httpx.AsyncClient, sandbox: Sandbox, parameter: str) -> None:
    _, second = attach(sandbox, "first", "second")
    names = {"client_id": second.principal.client_id, "object_id": second.principal.object_id}
    name = names.get(parameter, second.resource_id).upper()

    answer = await imds.get(TOKEN, params={**ASKED, parameter: name})

    assert answer.json()["client_id"] == second.principal.client_id


async def test_only_the_nodes_own_identities_are_served(imds: httpx.AsyncClient, sandbox: Sandbox) -> None:
    (identity,) = attach(sandbox, "app")
    query = {**ASKED, "client_id": identity.principal.client_id}
    async with httpx.AsyncClient(headers={"metadata": "true"}) as other:
        elsewhere = await other.get(sandbox.imds_urls["vm-node"] + TOKEN, params=query)

    assert (await imds.get(TOKEN, params=query)).status_code == 200
    assert (elsewhere.status_code, elsewhere.json()) == (400, NOT_FOUND)


async def test_without_an_id_the_system_identity_answers_else_the_only_one(
    imds: httpx.AsyncClient, sandbox: Sandbox
) -> None:
    none = await imds.get(TOKEN, params=ASKED)
    (first,) = attach(sandbox, "first")
    only = await imds.get(TOKEN, params=ASKED)
    attach(sandbox, "second")
    several = await imds.get(TOKEN, params=ASKED)
    host = sandbox.options.nodes[0].host_id
    sandbox.azure.attach(host, system=True)
    system = await imds.get(TOKEN, params=ASKED)

    assert none.json() == NOT_FOUND
    assert only.json()["client_id"] == first.principal.client_id
    assert several.json()["error_description"] == (
        "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the "
        "token request"
    )
    principal = sandbox.azure.host(host).system
    assert principal is not None
    assert system.json()["client_id"] == principal.client_id


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "status", "body"),
    [
        pytest.param(
            "GET",
            TOKEN,
            ASKED,
            {"metadata": ""},
            400,
            {"error": "invalid_request", "error_description": "Required metadata header not specified"},
            id="no Metadata header",
        ),
        pytest.param(
            "GET",
            TOKEN,
            {"api-version": "2018-02-01"},
            {},
            400,
            {"error": "invalid_request", "error_description": "Required query variable 'resource' is missing"},
            id="no resource",
        ),
        pytest.param(
            "GET",
            TOKEN,
            {"resource": "x", "api-version": "2016-01-01"},
            {},
            400,
            {
                "error": "Bad request. api-version is invalid or was not specified in the request. For more "
                "information refer to aka.ms/azureimds",
                "newest-versions": ["2025-04-07", "2024-07-17", "2024-03-15"],
            },
            id="bad version",
        ),
        pytest.param("GET", "/metadata/other", {}, {}, 404, {"error": "Not found"}, id="unknown path"),
        pytest.param("GET", "/metadata/identity/issuecredential", {}, {}, 404, {"error": "Not found"}, id="no IMDSv2"),
        pytest.param("POST", TOKEN, ASKED, {}, 405, {"error": "Method not allowed"}, id="other verb"),
        pytest.param("GET", TOKEN, {**ASKED, "client_id": "x"}, {}, 400, NOT_FOUND, id="not assigned"),
    ],
)
async def test_errors(
    imds: httpx.AsyncClient,
    method: str,
    path: str,
    query: dict[str, str],
    headers: dict[str, str],
    status: int,
    body: dict[str, Any],
) -> None:
    answer = await imds.request(method, path, params=query, headers=headers)

    assert (answer.status_code, answer.json()) == (status, body)
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


async def test_forwarded_requests_are_refused_in_xml(imds: httpx.AsyncClient) -> None:
    answer = await imds.get(TOKEN, params=ASKED, headers={"x-forwarded-for": "10.0.0.1"})

    assert answer.status_code == 400
    assert "<Details>Header contains 'X-Forwarded-For' are not supported.</Details>" in answer.text


@pytest.mark.parametrize("extra", [[("resource", "y")], [("client_id", "a"), ("object_id", "b")]])
async def test_ambiguous_queries_are_refused(imds: httpx.AsyncClient, extra: list[tuple[str, str]]) -> None:
    answer = await imds.get(TOKEN, params=httpx.QueryParams([*ASKED.items(), *extra]))

    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


async def test_the_node_is_described(imds: httpx.AsyncClient, sandbox: Sandbox) -> None:
    node = sandbox.options.nodes[0]
    query = {"api-version": "2021-02-01"}
    whole = (await imds.get("/metadata/instance", params=query)).json()
    leaf = await imds.get("/metadata/instance/compute/vmSize", params={**query, "format": "text"})
    names = await imds.get("/metadata/instance/compute/osProfile", params={**query, "format": "text"})
    leaf_as_json = await imds.get("/metadata/instance/compute/vmSize", params=query)
    address = "/metadata/instance/network/interface/0/ipv4/ipAddress/0/privateIpAddress"
    own = await imds.get(address, params={**query, "format": "text"})

    assert whole["compute"]["virtualMachineScaleSet"] == {"id": node.host_id}
    assert whole["compute"]["resourceId"] == f"{node.host_id}/virtualMachines/0"
    assert whole["compute"]["osProfile"]["computerName"] == node.name
    assert (leaf.text, leaf.headers["content-type"]) == ("Standard_D2s_v5", "text/plain; charset=utf-8")
    assert names.text.splitlines() == ["adminUsername", "computerName"]
    assert leaf_as_json.status_code == 400
    assert own.text == sandbox.node_addresses[node.name]


async def test_versions_and_tenant(imds: httpx.AsyncClient) -> None:
    versions = (await imds.get("/metadata/versions")).json()["apiVersions"]
    info = await imds.get("/metadata/identity/info", params={"api-version": "2018-02-01"})

    assert (versions[0], versions[-1]) == ("2017-03-01", "2025-04-07")
    assert info.json() == {"tenantId": TENANT}


async def test_limits_are_off_unless_asked_for(options: SandboxOptions, imds: httpx.AsyncClient) -> None:
    free = [(await imds.get(TOKEN, params=ASKED)).status_code for _ in range(30)]
    async with (
        Sandbox(dataclasses.replace(options, enforce_limits=True)) as strict,
        httpx.AsyncClient(headers={"metadata": "true"}) as client,
    ):
        url = next(iter(strict.imds_urls.values())) + TOKEN
        answers = await asyncio.gather(*(client.get(url, params=ASKED) for _ in range(60)))

    assert set(free) == {400}
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert refused[0].headers["retry-after"] == "1"


async def test_answers_can_take_their_time_and_only_five_at_once_are_served(options: SandboxOptions) -> None:
    async with (
        Sandbox(dataclasses.replace(options, enforce_limits=True)) as strict,
        httpx.AsyncClient(headers={"metadata": "true"}) as client,
    ):
        attach(strict, "app")
        name, url = next(iter(strict.imds_urls.items()))
        strict.imds[name].latency_s = 0.5
        began = time.monotonic()
        answers = await asyncio.gather(*(client.get(url + TOKEN, params=ASKED) for _ in range(8)))
        took_s = time.monotonic() - began

    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 3
    assert took_s >= 0.5

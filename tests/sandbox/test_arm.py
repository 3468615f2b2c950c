"""ARM over TLS: reads, identity changes with their operations, and every refusal that the real one is known for."""

import asyncio
import dataclasses
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from apps.sandbox.identity_rules import HostIdentity
from apps.sandbox.options import RESOURCE_GROUP, SUBSCRIPTION, TENANT, NodeSpec, identity_id, scale_set_nodes, vm_id
from apps.sandbox.sandbox import Sandbox, SandboxOptions
from apps.sandbox.tokens import Principal

V = {"api-version": "2024-11-01"}
A, B, C = (identity_id(name) for name in "abc")
SET = scale_set_nodes(1)[0].host_id
VM = vm_id("vm1")


@pytest.fixture
def options(options: SandboxOptions) -> SandboxOptions:
    """A scale set and a VM."""
    return dataclasses.replace(options, nodes=(*scale_set_nodes(2), NodeSpec("vm-node", VM)))


@pytest.fixture
def sandbox(sandbox: Sandbox) -> Sandbox:
    """The sandbox with three identities."""
    for entry in (A, B, C):
        sandbox.azure.add_identity(entry)
    return sandbox


def only(*ids: str, remove: tuple[str, ...] = (), kind: str = "UserAssigned") -> dict[str, Any]:
    """Return a PATCH body."""
    entries: dict[str, Any] = {**{entry: {} for entry in ids}, **dict.fromkeys(remove)}
    return {"identity": {"type": kind, "userAssignedIdentities": entries}}


async def finish(arm: httpx.AsyncClient, started: httpx.Response) -> dict[str, Any]:
    """Poll an operation to its end and return its last body."""
    url = started.headers["azure-asyncoperation"]
    async with asyncio.timeout(5):
        while True:
            body: dict[str, Any] = (await arm.get(url)).json()
            if body["status"] != "InProgress":
                return body
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("host", [SET, VM])
async def test_a_patch_shows_at_once_and_is_served_when_its_operation_ends(
    arm: httpx.AsyncClient, sandbox: Sandbox, host: str
) -> None:
    before = await arm.get(host, params=V)
    started = await arm.patch(host, params=V, json=only(A))
    served_early = sandbox.azure.host(host).served
    running = (await arm.get(started.headers["azure-asyncoperation"])).json()
    ended = await finish(arm, started)
    after = (await arm.get(host, params=V)).json()

    assert (started.status_code, "location" in started.headers, "retry-after" in started.headers) == (200, False, False)
    assert started.headers["azure-asyncnotification"] == "Enabled"
    assert started.json()["properties"]["provisioningState"] == "Updating"
    assert started.json()["identity"] == {"type": "UserAssigned", "userAssignedIdentities": {A: {}}}
    assert (before.json()["etag"], started.json()["etag"], started.headers["etag"]) == ('"1"', '"2"', '"2"')
    assert (served_early, sandbox.azure.host(host).served) == (frozenset(), {A.lower()})
    assert set(running) == {"startTime", "status", "name"}
    assert (ended["status"], ended["name"]) == ("Succeeded", running["name"])
    principal = sandbox.azure.identities[A.lower()].principal
    shown = {"principalId": principal.object_id, "clientId": principal.client_id}
    assert after["identity"]["userAssignedIdentities"] == {A: shown}
    assert after["properties"]["provisioningState"] == "Succeeded"


async def test_answers_look_like_arms(arm: httpx.AsyncClient) -> None:
    answer = await arm.patch(SET, params=V, json=only(A))

    assert answer.content.startswith(b'{\r\n  "')
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert int(answer.headers["x-ms-ratelimit-remaining-subscription-writes"]) == 199
    assert answer.headers["x-ms-ratelimit-remaining-resource"] == (
        "Microsoft.Compute/VMScaleSetActionsSubscriptionMaximum;1499,Microsoft.Compute/VMScaleSetActionsResource;11,"
        "Microsoft.Compute/VMScaleSetBatchedVMRequestsSubscriptionMaximum;6000,Microsoft.Compute/VmssQueuedVMOperations;0"
    )
    url = answer.headers["azure-asyncoperation"]
    place = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Compute/locations/westeurope/operations/"
    assert re.match(re.escape(str(arm.base_url)) + place + r"[0-9a-f-]{36}\?p=", url)
    assert 3000 < len(url) < 4096
    assert (await arm.get(url[:-40])).status_code == 200
    assert (await arm.get(url.replace("&c=", "&c=x"))).status_code == 404


@pytest.mark.parametrize(
    ("held", "body", "wanted"),
    [
        pytest.param(HostIdentity(False, (A,)), only(B), HostIdentity(False, (A, B)), id="adding keeps others"),
        pytest.param(HostIdentity(False, (A, B)), only(C, remove=(A,)), HostIdentity(False, (B, C)), id="null removes"),
        pytest.param(HostIdentity(False, (A,)), only(A.upper()), HostIdentity(False, (A,)), id="case is ignored"),
        pytest.param(
            HostIdentity(True, ()),
            only(A, kind="SystemAssigned,UserAssigned"),
            HostIdentity(True, (A,)),
            id="system identity stays if named",
        ),
        pytest.param(HostIdentity(True, ()), only(A), HostIdentity(False, (A,)), id="and goes if not"),
        pytest.param(
            HostIdentity(True, (A,)),
            {"identity": {"type": "SystemAssigned"}},
            HostIdentity(True, ()),
            id="type drops all user-assigned",
        ),
        pytest.param(
            HostIdentity(True, (A,)),
            {"identity": {"type": "None", "userAssignedIdentities": None}},
            HostIdentity(),
            id="none drops all",
        ),
        pytest.param(HostIdentity(False, (A,)), {"tags": {"x": "y"}}, HostIdentity(False, (A,)), id="tags only"),
    ],
)
async def test_changes(
    arm: httpx.AsyncClient, sandbox: Sandbox, held: HostIdentity, body: dict[str, Any], wanted: HostIdentity
) -> None:
    sandbox.azure.attach(SET, held.assigned, system=held.system)

    started = await arm.patch(SET, params=V, json=body)
    await finish(arm, started)

    host = sandbox.azure.host(SET)
    assert (started.status_code, host.identity, host.served) == (200, wanted, wanted.folded)
    shown = started.json().get("identity", {"type": "None"})
    assert shown["type"] == wanted.type
    assert ("principalId" in shown) is wanted.system


@pytest.mark.parametrize(
    ("body", "status", "code", "word"),
    [
        ({"identity": {"userAssignedIdentities": {A: {}}}}, 400, "InvalidRequestContent", "Required property 'type'"),
        ({"identity": {"type": "Other"}}, 400, "InvalidRequestContent", "Error converting value"),
        (only(kind="SystemAssigned"), 400, "FailedIdentityOperation", "a non-UserAssigned identity type should not"),
        (only(kind="UserAssigned"), 400, "MissingIdentityIds", "must not be null or empty"),
        (only(remove=(A,)), 400, "MissingIdentityIds", "must not be null or empty"),
        (only("identity"), 400, "LinkedInvalidPropertyId", "Expect fully qualified resource Id"),
        (only(VM), 400, "InvalidIdentityId", "are invalid. It must be of the following format"),
        (only(A, identity_id("none")), 400, "FailedIdentityOperation", identity_id("none").lower()),
        (
            {"identity": {"type": "UserAssigned", "userAssignedIdentities": {A: {"clientId": "x"}}}},
            400,
            "InvalidIdentityValues",
            A,
        ),
    ],
)
async def test_refused_changes(
    arm: httpx.AsyncClient, sandbox: Sandbox, body: dict[str, Any], status: int, code: str, word: str
) -> None:
    answer = await arm.patch(SET, params=V, json=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert word in error["message"]
    assert sandbox.azure.host(SET).etag == 1
    assert sandbox.azure.operations == []


async def test_identities_can_be_refused_on_demand(arm: httpx.AsyncClient, sandbox: Sandbox) -> None:
    sandbox.azure.refuse(A)
    failed = await arm.patch(SET, params=V, json=only(A, B))
    for entry in (A, B):
        sandbox.azure.refuse(entry, "LinkedAuthorizationFailed")
    unauthorized = await arm.patch(SET, params=V, json=only(A, B))
    sandbox.azure.accept(A)
    sandbox.azure.accept(B)
    accepted = await arm.patch(SET, params=V, json=only(A, B))

    message = failed.json()["error"]["message"]
    assert failed.json()["error"]["code"] == "FailedIdentityOperation"
    assert f'{{"error":{{"code":"BadRequest","message":"Resource \'{A.lower()}\' was not found."}}}}' in message
    assert (unauthorized.status_code, unauthorized.json()["error"]["code"]) == (403, "LinkedAuthorizationFailed")
    scopes = re.findall(r"linked scope\(s\) '([^']*)'", unauthorized.json()["error"]["message"])
    assert scopes[0].lower().split(",") == [A.lower(), B.lower()]
    assert accepted.status_code == 200


async def test_a_newer_write_pre_empts_the_running_operation(arm: httpx.AsyncClient, sandbox: Sandbox) -> None:
    first = await arm.patch(SET, params=V, json=only(A))
    second = await arm.patch(SET, params=V, json=only(B))

    preempted, ended = await finish(arm, first), await finish(arm, second)

    assert (preempted["status"], preempted["error"]["code"]) == ("Canceled", "OperationPreempted")
    assert ended["status"] == "Succeeded"
    assert sandbox.azure.host(SET).served == {A.lower(), B.lower()}


async def test_an_operation_can_fail(arm: httpx.AsyncClient, sandbox: Sandbox) -> None:
    sandbox.azure.fail_next_operation("InternalExecutionError")

    ended = await finish(arm, await arm.patch(SET, params=V, json=only(A)))

    assert (ended["status"], ended["error"]["code"]) == ("Failed", "InternalExecutionError")
    assert sandbox.azure.host(SET).served == frozenset()
    assert (await arm.get(SET, params=V)).json()["properties"]["provisioningState"] == "Failed"


async def test_if_match_needs_the_newest_etag(arm: httpx.AsyncClient) -> None:
    stale = await arm.patch(SET, params=V, json=only(A), headers={"if-match": '"0"'})
    good = await arm.patch(SET, params=V, json=only(A), headers={"if-match": '"1"'})
    old_api = await arm.patch(SET, params={"api-version": "2019-12-01"}, json=only(A), headers={"if-match": '"0"'})

    assert (stale.status_code, stale.json()["error"]["code"]) == (412, "PreconditionFailed")
    assert 'Etag provided in if-match header "0" does not match etag "1"' in stale.json()["error"]["message"]
    assert good.status_code == 200
    assert old_api.status_code == 200
    assert "etag" not in old_api.json()


async def test_operations_are_recorded_with_their_times(arm: httpx.AsyncClient, sandbox: Sandbox) -> None:
    await finish(arm, await arm.patch(SET, params=V, json=only(A)))

    (operation,) = sandbox.azure.operations
    assert operation.ended_at is not None
    assert operation.reported_at is not None
    assert operation.ended_at - operation.started_at == pytest.approx(0.15, abs=0.1)
    assert operation.reported_at >= operation.ended_at
    assert operation.polls >= 2


async def test_identities_are_created_listed_and_deleted(arm: httpx.AsyncClient) -> None:
    fresh = identity_id("fresh")
    missing = await arm.put(fresh, params=V, json={})
    made = await arm.put(fresh, params=V, json={"location": "westeurope", "tags": {"x": "y"}})
    again = await arm.put(fresh, params=V, json={"location": "westeurope"})
    listed = (await arm.get(fresh.rsplit("/", 1)[0], params=V)).json()["value"]
    deleted = [(await arm.delete(fresh, params=V)).status_code for _ in range(2)]
    gone = await arm.get(fresh, params=V)

    assert (missing.status_code, made.status_code, again.status_code) == (400, 201, 200)
    assert made.json()["id"] == fresh.replace("/resourceGroups/", "/resourcegroups/")
    assert made.json()["properties"]["clientId"] == again.json()["properties"]["clientId"]
    assert [entry["name"] for entry in listed] == ["a", "b", "c", "fresh"]
    assert deleted == [200, 204]
    assert gone.json()["error"]["code"] == "ResourceNotFound"


@pytest.mark.parametrize(
    ("path", "names"),
    [
        (f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Compute/virtualMachines", ["vm1"]),
        (VM.rsplit("/", 1)[0], ["vm1"]),
        (SET.rsplit("/", 1)[0], [SET.rsplit("/", 1)[1]]),
        (f"{SET}/virtualMachines", [f"{SET.rsplit('/', 1)[1]}_{number}" for number in range(2)]),
        (VM.rsplit("/", 1)[0].replace(RESOURCE_GROUP, "other"), []),
    ],
)
async def test_lists(arm: httpx.AsyncClient, path: str, names: list[str]) -> None:
    answer = await arm.get(path, params=V)

    assert [entry["name"] for entry in answer.json()["value"]] == names


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (vm_id("none"), 404, "ResourceNotFound"),
        (vm_id("none", resource_group="none"), 404, "ResourceGroupNotFound"),
        (vm_id("none", subscription="none"), 404, "SubscriptionNotFound"),
        (f"{SET}/virtualMachines/7", 404, "NotFound"),
        (f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Other/things", 404, "InvalidResourceType"),
    ],
)
async def test_what_is_not_there(arm: httpx.AsyncClient, path: str, status: int, code: str) -> None:
    answer = await arm.get(path, params=V)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_ids_are_found_in_any_case_and_the_version_is_needed(arm: httpx.AsyncClient) -> None:
    assert (await arm.get(SET.lower(), params=V)).json()["id"] == SET
    assert (await arm.get(SET)).json()["error"]["code"] == "MissingApiVersionParameter"
    assert (await arm.put(SET, params=V, json={})).status_code == 405


async def test_only_valid_tokens_for_arm_are_accepted(azure: httpx.AsyncClient, sandbox: Sandbox) -> None:
    issuer, principal = sandbox.entra.issuer, Principal(TENANT, "c", "o")
    texts = {
        "": "AuthenticationFailed",
        "nonsense": "InvalidAuthenticationToken",
        issuer.issue(principal, "https://vault.azure.net", 60).text: "InvalidAuthenticationTokenAudience",
        issuer.issue(principal, "https://management.azure.com", -1).text: "ExpiredAuthenticationToken",
        issuer.issue(principal, "https://management.azure.com/", 60).text: "",
        issuer.issue(principal, "https://management.core.windows.net", 60).text: "",
        issuer.issue(principal, f"{sandbox.arm_url}/", 60).text: "",
    }
    for text, code in texts.items():
        headers = {"authorization": f"Bearer {text}"} if text else {}
        answer = await azure.get(f"{sandbox.arm_url}{SET}", params=V, headers=headers)

        assert answer.status_code == (401 if code else 200)
        assert answer.json().get("error", {}).get("code", "") == code
        assert text == "" or text not in answer.text


async def test_every_answer_says_what_is_left_and_a_poll_is_a_read(arm: httpx.AsyncClient) -> None:
    answers = [await arm.get(VM, params=V), await arm.patch(VM, params=V, json=only(A))]
    answers.append(await arm.get(answers[1].headers["azure-asyncoperation"]))

    told = [answer.headers["x-ms-ratelimit-remaining-resource"].replace("Microsoft.Compute/", "") for answer in answers]
    assert told == [
        "LowCostGetSubscriptionMaximum;23999,LowCostGetResource;35",
        "UpdateVMSubscriptionMaximum;1498,UpdateVMResource;10",
        "GetOperationSubscriptionMaximum;14999,GetOperationResource;44",
    ]
    prefix = "x-ms-ratelimit-remaining-subscription-"
    assert [sorted(name for name in answer.headers if name.startswith(prefix)) for answer in answers] == [
        [f"{prefix}global-{what}", f"{prefix}{what}"] for what in ("reads", "writes", "reads")
    ]


@asynccontextmanager
async def strict(options: SandboxOptions) -> AsyncIterator[tuple[Sandbox, httpx.AsyncClient]]:
    """A sandbox that enforces Azure's budgets, none of which comes back, and a client of its ARM."""
    async with Sandbox(dataclasses.replace(options, enforce_limits=True)) as sandbox:
        sandbox.arm._limits.now = lambda: 0.0
        sandbox.azure.add_identity(A)
        token = sandbox.entra.issuer.issue(Principal(TENANT, "c", "o"), "https://management.azure.com/", 60)
        headers = {"authorization": f"Bearer {token.text}"}
        async with httpx.AsyncClient(base_url=sandbox.arm_url, headers=headers, verify=_context(sandbox)) as client:
            yield sandbox, client


@pytest.mark.parametrize(
    ("host", "method", "allowed", "limit", "wait_s"),
    [
        (SET, "GET", 36, "GetVMScaleSetResource", 5),
        (VM, "GET", 36, "LowCostGetResource", 5),
        (SET, "PATCH", 12, "VMScaleSetActionsResource", 15),
        (VM, "PATCH", 6, "UpdateVMResource", 30),
    ],
)
async def test_a_hosts_budget_is_enforced_in_the_words_of_the_compute_provider(
    options: SandboxOptions, host: str, method: str, allowed: int, limit: str, wait_s: int
) -> None:
    async with strict(options) as (_, client):
        body = only(A) if method == "PATCH" else None
        answers = [await client.request(method, host, params=V, json=body) for _ in range(allowed + 1)]
        other = await client.request(method, VM if host == SET else SET, params=V, json=body)

    refused = answers[-1].json()
    assert [answer.status_code for answer in (*answers, other)] == [200] * allowed + [429, 200]
    assert int(answers[-1].headers["retry-after"]) == wait_s
    assert f"Microsoft.Compute/{limit};0" in answers[-1].headers["x-ms-ratelimit-remaining-resource"]
    assert (refused["code"], refused["details"][0]["code"], refused["details"][0]["target"]) == (
        "OperationNotAllowed",
        "TooManyRequests",
        limit,
    )
    assert "for this subscription" in refused["message"]


async def test_a_subscriptions_budget_is_enforced_in_the_words_of_arm_for_each_caller(options: SandboxOptions) -> None:
    async with strict(options) as (sandbox, client):
        for _ in range(250):
            sandbox.arm._limits.take("subscription-reads", f"{SUBSCRIPTION}/o")
        refused = await client.get(SET, params=V)
        write = await client.patch(SET, params=V, json=only(A))
        other = sandbox.entra.issuer.issue(Principal(TENANT, "c", "other"), "https://management.azure.com/", 60)
        somebody = await client.get(SET, params=V, headers={"authorization": f"Bearer {other.text}"})

    assert [answer.status_code for answer in (refused, write, somebody)] == [429, 200, 200]
    assert refused.json()["error"]["code"] == "SubscriptionRequestsThrottled"
    assert f"Number of 'read' requests for subscription '{SUBSCRIPTION}'" in refused.json()["error"]["message"]
    assert refused.headers["x-ms-ratelimit-remaining-subscription-reads"] == "0"
    assert int(refused.headers["retry-after"]) == 1


def _context(sandbox: Sandbox) -> Any:
    return ssl.create_default_context(cafile=str(sandbox.ca_file))

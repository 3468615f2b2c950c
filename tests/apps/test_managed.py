"""NMI in managed mode and nobody beside it: bindings say who may use what, and somebody else has put it on the node."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
import pytest_asyncio

from apps.sandbox.hosts import UserAssigned
from tests.apps.daemons import PATIENCE_S
from tests.apps.raw_http import Reply
from tests.apps.stage import API, Stage, now_s, sdk_token, stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT_ONCE_S = 1.9
"""What an answer without a wait may take on a busy machine; in standard mode such a pod waits for 2 s here."""
_markers = itertools.count()


@dataclass
class Managed:
    """The sandbox with NMI, and the node's metadata service as the sandbox's records call it."""

    stage: Stage
    imds: str

    def bind(self, name: str, *, selector: str = "", namespace: str = "default") -> UserAssigned:
        """Let an identity be on the node, and bound to the pods of its namespace with the label *selector*."""
        made = self.stage.identity(name, selector=selector, namespace=namespace)
        self.put_on_node(made)
        return made

    def put_on_node(self, identity: UserAssigned) -> None:
        self.stage.sandbox.azure.attach(self.stage.host.resource_id, [identity.resource_id])

    async def all_seen(self) -> None:
        """Return when NMI has seen everything so far: it serves a pod whose objects came last."""
        name = f"marker-{next(_markers)}"
        self.bind(name)
        await self.until(await self.stage.pod(name), 200)

    async def until(self, address: str, status: int) -> Reply:
        """Ask until the answer has this status."""
        async with asyncio.timeout(PATIENCE_S):
            while (reply := await self.stage.token(address)).status != status:  # noqa: ASYNC110  # NMI tells nobody
                await asyncio.sleep(0.01)
        return reply

    def calls(self, identity: UserAssigned) -> int:
        """How often the metadata service was asked for a token of *identity*."""
        return len(self.stage.sandbox.faults.seen(self.imds, match=identity.principal.client_id))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def managed() -> AsyncIterator[Managed]:
    async with stage() as started:
        started.namespace("other")
        await started.nmi("--operation-mode=managed", "--forceNamespaced")
        yield Managed(started, f"imds/{started.sandbox.options.nodes[0].name}")


def whose(reply: Reply) -> str:
    """The client ID of the identity that the token is for."""
    assert reply.status == 200, reply.body
    claims = jwt.decode(json.loads(reply.body)["access_token"], options={"verify_signature": False})
    return str(claims["appid"])


async def test_a_pod_with_a_binding_gets_its_token_at_once(managed: Managed) -> None:
    identity = managed.bind("first")
    await managed.all_seen()
    address = await managed.stage.pod("first")
    asked_s = now_s()

    reply = await managed.stage.token(address)

    assert now_s() - asked_s < AT_ONCE_S
    assert whose(reply) == identity.principal.client_id


async def test_azure_identity_gets_it_too(managed: Managed, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = managed.bind("sdk")
    await managed.all_seen()

    token = await sdk_token(managed.stage.nmi_port, await managed.stage.pod("sdk"), monkeypatch)

    assert jwt.decode(token, options={"verify_signature": False})["appid"] == identity.principal.client_id


async def test_a_pod_with_two_bindings_gets_the_identity_that_it_names(managed: Managed) -> None:
    identities = [managed.bind(f"two-{letter}", selector="two") for letter in "ab"]
    await managed.all_seen()
    address = await managed.stage.pod("two")

    by_client = [await managed.stage.token(address, client_id=one.principal.client_id) for one in identities]
    by_resource = [await managed.stage.token(address, msi_res_id=one.resource_id) for one in identities]

    ids = [one.principal.client_id for one in identities]
    assert [whose(reply) for reply in by_client] == ids
    assert [whose(reply) for reply in by_resource] == ids


@dataclass
class Near:
    """A pod's labels, and a binding that is nearly the pod's."""

    selector: str
    namespace: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict)


NEARLY = {
    "no-binding": Near("something else"),
    "other-namespace": Near("other-namespace", namespace="other"),
    "other-case": Near("Other-Case"),
    "empty": Near("empty", labels={"aadpodidbinding": ""}),
}


@pytest.mark.parametrize("name", NEARLY)
async def test_a_pod_to_which_no_binding_leads_is_refused_at_once(managed: Managed, name: str) -> None:
    near = NEARLY[name]
    identity = managed.bind(name, selector=near.selector, namespace=near.namespace)
    address = await managed.stage.pod(name, labels=near.labels)
    await managed.all_seen()
    asked_s = now_s()

    reply = await managed.stage.token(address)

    assert now_s() - asked_s < AT_ONCE_S
    assert (reply.status, json.loads(reply.body)["error"]) == (404, "identity_not_found")
    assert managed.calls(identity) == 0


async def test_a_binding_to_nothing_gives_nothing(managed: Managed) -> None:
    managed.stage.binding("dangling", identity="nothing")
    address = await managed.stage.pod("dangling")
    await managed.all_seen()

    assert (await managed.stage.token(address)).status == 404


async def test_an_identity_of_another_pod_is_refused_though_it_is_on_the_node(managed: Managed) -> None:
    foreign = managed.bind("foreign")
    managed.bind("asker")
    await managed.all_seen()
    address = await managed.stage.pod("asker")

    assert (await managed.stage.token(address, client_id=foreign.principal.client_id)).status == 404
    assert managed.calls(foreign) == 0


async def test_each_namespace_has_its_own(managed: Managed) -> None:
    """Label, binding and AzureIdentity have the same names in both."""
    mine = managed.bind("shared-name")
    theirs = managed.stage.sandbox.azure.add_identity(f"{mine.resource_id}-of-other")
    managed.put_on_node(theirs)
    ids = {"resourceID": theirs.resource_id, "clientID": theirs.principal.client_id}
    managed.stage.azure_identity("shared-name", namespace="other", **ids)
    managed.stage.binding("shared-name", namespace="other")
    await managed.all_seen()
    addresses = [await managed.stage.pod("shared-name", namespace=namespace) for namespace in ("default", "other")]

    replies = [await managed.stage.token(address) for address in addresses]

    assert [whose(reply) for reply in replies] == [mine.principal.client_id, theirs.principal.client_id]


@pytest.mark.parametrize("plural", ["azureidentitybindings", "azureidentities"])
async def test_what_is_taken_back_ends_service_though_the_token_is_kept(managed: Managed, plural: str) -> None:
    name = f"revoked-{plural}"
    identity = managed.bind(name)
    await managed.all_seen()
    address = await managed.stage.pod(name)
    before = await managed.stage.token(address)

    managed.stage.delete(plural, name)
    deleted_s = now_s()
    await managed.until(address, 404)

    assert whose(before) == identity.principal.client_id
    assert now_s() - deleted_s < AT_ONCE_S
    assert managed.calls(identity) == 1


async def test_a_pod_whose_label_changes_changes_its_identity(managed: Managed) -> None:
    before, after = managed.bind("before"), managed.bind("after")
    await managed.all_seen()
    address = await managed.stage.pod("fickle", "before")
    assert whose(await managed.stage.token(address)) == before.principal.client_id

    def relabel(pod: Any) -> None:
        pod["metadata"]["labels"]["aadpodidbinding"] = "after"

    managed.stage.sandbox.cluster.change("pods", "default", "fickle", relabel)
    await managed.all_seen()

    assert whose(await managed.stage.token(address)) == after.principal.client_id


async def test_an_excepted_pod_gets_the_nodes_own_tokens_without_a_binding(managed: Managed) -> None:
    unbound = managed.stage.sandbox.azure.add_identity("/subscriptions/s/resourceGroups/g/unbound")
    managed.put_on_node(unbound)
    managed.stage.sandbox.azure.attach(managed.stage.host.resource_id, system=True)
    rule = {"apiVersion": API, "kind": "AzurePodIdentityException", "spec": {"podLabels": {"app": "agent"}}}
    managed.stage.sandbox.cluster.create({**rule, "metadata": {"name": "agents", "namespace": "default"}})
    excepted = await managed.stage.pod("agent", labels={"app": "agent"})
    others = await managed.stage.pod("agent", namespace="other", labels={"app": "agent"})
    await managed.until(excepted, 200)

    own = await managed.stage.token(excepted)
    named = await managed.stage.token(excepted, client_id=unbound.principal.client_id)

    assert managed.stage.host.system is not None
    assert whose(own) == managed.stage.host.system.client_id
    assert whose(named) == unbound.principal.client_id
    assert (await managed.stage.token(others)).status == 404


async def test_nobody_writes_anything_and_assignments_are_not_even_read(managed: Managed) -> None:
    managed.bind("quiet")
    await managed.all_seen()
    assert (await managed.stage.token(await managed.stage.pod("quiet"))).status == 200

    faults = managed.stage.sandbox.faults
    assert {entry.method for entry in faults.seen("kube")} == {"GET"}
    assert faults.seen("kube", match="azureassignedidentities") == []
    assert faults.seen("arm") == []

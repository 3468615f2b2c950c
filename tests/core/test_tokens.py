"""NMI's work: whose request it is, when it waits and when no longer, and what it never gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from podidentity_core.errors import TokenRefused, TransientError
from podidentity_core.model import (
    Assignment,
    AssignmentState,
    Change,
    Identity,
    IdentityKind,
    Key,
    Pod,
    PodPhase,
    Seen,
    Synced,
    Thing,
)
from podidentity_core.ports import ClusterReader
from podidentity_core.reasons import Explanation, Reason, because
from podidentity_core.selection import Patience
from podidentity_core.services.tokens import Denied, Granted, TokenPorts, TokenService, TokenSettings
from podidentity_core.services.waiters import MOST_OF_ONE_ADDRESS, MOST_WAITING
from podidentity_core.testing.builders import assignment, binding, client_id, exception_rule, identity, pod
from podidentity_core.testing.clock import FakeClock, settle
from podidentity_core.testing.fakes import FakeCluster, FakeMeter, FakeTokens
from podidentity_core.token_request import Selector, SelectorKind, TokenRequest

ADDRESS = "10.0.0.7"
VAULT = TokenRequest("https://vault.azure.net")
WEB = pod(ips=(ADDRESS,))
ASSIGNED = assignment(WEB)
CREATED = assignment(WEB, state=AssignmentState.CREATED)


def by_client(name: str) -> TokenRequest:
    value = client_id(name)
    return TokenRequest(VAULT.resource, Selector(SelectorKind.CLIENT_ID, value, value))


class Reader:
    """A cluster of which NMI sees one change after the other, when the test says so."""

    def __init__(self) -> None:
        self._news: asyncio.Queue[Sequence[Change]] = asyncio.Queue()

    def tell(self, *changes: Change) -> None:
        self._news.put_nowait(changes)

    async def changes(self) -> AsyncIterator[Sequence[Change]]:
        while True:
            yield await self._news.get()


class Node:
    """A node with NMI on it, in a cluster that the test plays."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.cluster = FakeCluster()
        self.tokens = FakeTokens(self.clock)
        self.node_tokens = FakeTokens(self.clock)
        self.work: list[asyncio.Task[None]] = []
        self._make(namespaced=False)

    def _make(self, *, namespaced: bool, reader: ClusterReader | None = None) -> None:
        sources = {IdentityKind.USER_ASSIGNED: self.tokens, IdentityKind.SERVICE_PRINCIPAL: self.tokens}
        self.meter = FakeMeter()
        ports = TokenPorts(reader or self.cluster, self.cluster, sources, self.node_tokens, self.clock, self.meter)
        patience = Patience(absent_s=80, created_s=100)
        self.service = TokenService(ports, TokenSettings("node-1", namespaced, "mic", patience))

    @property
    def looks(self) -> int:
        """How often the API server was asked for the pods themselves."""
        return sum(call.operation == "pods" for call in self.cluster.calls)

    async def start(self, *things: Thing, namespaced: bool = False) -> None:
        self._make(namespaced=namespaced)
        for thing in things:
            self.cluster.put(thing)
        self.work.append(asyncio.create_task(self.service.run()))
        await settle()

    def follow(self, reader: ClusterReader) -> None:
        """Start NMI, of which *reader* says what it sees."""
        self._make(namespaced=False, reader=reader)
        self.work.append(asyncio.create_task(self.service.run()))

    async def ask(
        self, request: TokenRequest = VAULT, address: str = ADDRESS, *, within_s: float = 0.0
    ) -> Granted | Denied:
        """Ask, and let the clock run until the answer is there, which must be at *within_s* exactly."""
        return await self.answer(self.asking(request, address), within_s=within_s)

    def asking(self, request: TokenRequest = VAULT, address: str = ADDRESS) -> asyncio.Task[Granted | Denied]:
        return asyncio.create_task(self.service.answer(address, request))

    async def answer(self, asked: asyncio.Task[Granted | Denied], *, within_s: float) -> Granted | Denied:
        if within_s:
            await self.clock.advance(within_s - 0.01)
            assert not asked.done(), "the answer came early"
            await self.clock.advance(0.01)
        await settle()
        assert asked.done(), "the answer is late"
        return asked.result()


@pytest_asyncio.fixture
async def node() -> AsyncIterator[Node]:
    node = Node()
    yield node
    for work in node.work:
        work.cancel()
    await asyncio.gather(*node.work, return_exceptions=True)
    assert node.clock.next_wake_s() is None, "somebody still sleeps"
    assert node.service.waiting == 0, "somebody still waits"


def denied(answer: Granted | Denied) -> Explanation:
    assert isinstance(answer, Denied)
    return answer.explanation


def granted(answer: Granted | Denied) -> str:
    assert isinstance(answer, Granted)
    return answer.identity.name if answer.identity else "the node"


async def test_a_pod_gets_a_token_of_its_identity(node: Node) -> None:
    await node.start(WEB, ASSIGNED)

    answer = await node.ask()

    assert isinstance(answer, Granted)
    assert (answer.tokens[0].token, answer.pod, answer.identity) == ("token-1", WEB, identity())
    assert node.tokens.calls == [(client_id("web"), VAULT.resource)]


async def test_a_second_request_costs_no_second_call(node: Node) -> None:
    await node.start(WEB, ASSIGNED)
    first, second = await node.ask(), await node.ask()

    assert isinstance(first, Granted)
    assert second == replace(first, kept=True)
    assert len(node.tokens.calls) == 1


async def test_two_pods_with_one_identity_cost_one_call(node: Node) -> None:
    other = pod("other", ips=("10.0.0.8",))
    await node.start(WEB, other, ASSIGNED, assignment(other))
    await node.ask()
    await node.ask(address="10.0.0.8")

    assert len(node.tokens.calls) == 1


async def test_each_resource_and_each_identity_has_a_token_of_its_own(node: Node) -> None:
    await node.start(WEB, ASSIGNED, assignment(WEB, identity("db")))
    for request in (by_client("db"), by_client("web"), replace(by_client("web"), resource="https://x")):
        await node.ask(request)

    assert len(node.tokens.calls) == 3


@pytest.mark.parametrize(("state", "patience_s"), [(None, 80.0), (AssignmentState.CREATED, 100.0)])
async def test_a_wait_ends_when_the_assignment_becomes_usable(
    node: Node, state: AssignmentState | None, patience_s: float
) -> None:
    await node.start(WEB, *([replace(ASSIGNED, state=state)] if state else []))
    asked = node.asking()
    await node.clock.advance(patience_s - 1)
    before = asked.done()

    node.cluster.put(ASSIGNED)
    await settle()

    assert not before
    assert granted(await asked) == "web"


async def test_fifty_who_wait_are_answered_at_once_with_one_call(node: Node) -> None:
    await node.start(WEB, CREATED)
    asked = [node.asking() for _ in range(50)]
    await node.clock.advance(5)
    node.cluster.put(ASSIGNED)
    await settle()

    assert {granted(await one) for one in asked} == {"web"}
    assert len(node.tokens.calls) == 1


async def test_other_changes_do_not_end_a_wait(node: Node) -> None:
    await node.start(WEB, CREATED)
    asked = node.asking(by_client("web"))
    await settle()
    node.cluster.put(assignment(WEB, identity("db")))
    node.cluster.put(assignment(pod("other")))
    await settle()

    assert not asked.done()
    assert denied(await node.answer(asked, within_s=100)).reason is Reason.NOT_ASSIGNED_YET


REFUSALS = {
    "nothing": ([WEB], VAULT, 80, because(Reason.NO_IDENTITY, pod="default/web-0")),
    "only Created": (
        [WEB, CREATED],
        VAULT,
        100,
        because(Reason.NOT_ASSIGNED_YET, pod="default/web-0", waited_s="100", noted="nothing"),
    ),
    "another identity": (
        [WEB, ASSIGNED],
        by_client("db"),
        80,
        because(Reason.NO_SUCH_IDENTITY, pod="default/web-0", selector=str(by_client("db").selector)),
    ),
    "no client ID": (
        [WEB, assignment(WEB, identity(client=""))],
        VAULT,
        0,
        because(Reason.NO_CLIENT_ID, identity="default/web"),
    ),
    "a kind without a source": (
        [WEB, assignment(WEB, identity(kind=IdentityKind.CERTIFICATE))],
        VAULT,
        0,
        because(Reason.UNSUPPORTED_KIND, identity="default/web", kind="2"),
    ),
}


@pytest.mark.parametrize(("things", "request_", "within_s", "why"), REFUSALS.values(), ids=REFUSALS)
async def test_a_pod_is_told_why_it_gets_no_token(
    node: Node, things: list[Pod | Assignment], request_: TokenRequest, within_s: float, why: Explanation
) -> None:
    await node.start(*things)

    answer = await node.ask(request_, within_s=within_s)

    assert answer == Denied(why, WEB)
    assert node.tokens.calls == []


async def test_a_revoked_binding_ends_service_although_the_token_is_still_kept(node: Node) -> None:
    await node.start(WEB, ASSIGNED)
    granted(await node.ask())
    node.cluster.remove(ASSIGNED)
    await settle()

    assert denied(await node.ask(within_s=80)).reason is Reason.NO_IDENTITY


async def test_an_identity_on_its_way_out_is_served_no_longer(node: Node) -> None:
    await node.start(WEB, ASSIGNED)
    granted(await node.ask())
    node.cluster.put(replace(ASSIGNED, state=AssignmentState.UNASSIGNED))
    await settle()

    assert denied(await node.ask(within_s=80)).reason is Reason.NO_IDENTITY


async def test_a_reused_address_inherits_nothing(node: Node) -> None:
    successor = pod("next", ips=(ADDRESS,))
    await node.start(WEB, ASSIGNED)
    granted(await node.ask())
    node.cluster.remove(WEB)
    node.cluster.put(successor)
    await settle()

    assert (await node.ask(within_s=80)) == Denied(because(Reason.NO_IDENTITY, pod="default/next"), successor)


async def test_a_request_that_waits_is_not_answered_to_the_next_who_has_its_address(node: Node) -> None:
    await node.start(WEB, CREATED)
    asked = node.asking()
    await settle()
    node.cluster.remove(WEB)
    node.cluster.put(pod("next", ips=(ADDRESS,)))
    node.cluster.put(ASSIGNED)
    await settle()

    assert denied(await asked) == because(Reason.UNKNOWN_POD, address=ADDRESS, node="node-1")
    assert node.tokens.calls == []


async def test_an_unknown_address_is_refused_after_a_moment(node: Node) -> None:
    await node.start(WEB, ASSIGNED)

    answer = await node.ask(address="10.0.0.99", within_s=1.2)

    assert answer == Denied(because(Reason.UNKNOWN_POD, address="10.0.0.99", node="node-1"))
    assert node.meter.counts["kubernetes_api_operations_errors_count:get_pod_list"] == 1


async def test_a_pod_that_becomes_known_meanwhile_is_served_at_once(node: Node) -> None:
    await node.start(ASSIGNED)
    asked = node.asking()
    await node.clock.advance(1)
    node.cluster.put(WEB)
    await settle()

    assert granted(await asked) == "web"


async def test_before_everything_has_been_seen_a_request_waits_longer(node: Node) -> None:
    node.cluster.put(ASSIGNED)
    asked = node.asking()
    await node.clock.advance(59)
    before = (asked.done(), node.service.synced)
    node.work.append(asyncio.create_task(node.service.run()))
    node.cluster.put(WEB)
    await settle()

    assert (before, node.service.synced) == ((False, False), True)
    assert asked.done()


async def test_an_address_that_two_running_pods_claim_is_refused_until_one_has_ended(node: Node) -> None:
    former = pod("former", ips=(ADDRESS,))
    await node.start(former, WEB, ASSIGNED)

    assert denied(await node.ask()) == because(Reason.AMBIGUOUS_POD, address=ADDRESS, node="node-1")
    node.cluster.put(replace(former, phase=PodPhase.SUCCEEDED))
    await settle()
    assert granted(await node.ask()) == "web"


async def test_a_pod_in_the_node_s_network_has_no_identity(node: Node) -> None:
    await node.start(replace(WEB, host_network=True), ASSIGNED)

    assert denied(await node.ask(within_s=1.2)).reason is Reason.UNKNOWN_POD


async def test_namespaced_an_identity_serves_its_namespace_only(node: Node) -> None:
    await node.start(WEB, assignment(WEB, identity(namespace="other")), namespaced=True)

    assert denied(await node.ask(within_s=80)).reason is Reason.NO_IDENTITY


EXCEPTED = {
    "by a rule": [replace(WEB, labels={"app": "agent"}), exception_rule()],
    "as MIC itself": [replace(WEB, namespace="mic", owner_replica_set="mic-abc123")],
}


@pytest.mark.parametrize("things", EXCEPTED.values(), ids=EXCEPTED)
async def test_an_excepted_pod_gets_the_node_s_own_token_at_once(node: Node, things: list[Thing]) -> None:
    await node.start(*things)

    assert granted(await node.ask()) == "the node"
    assert granted(await node.ask()) == "the node"
    assert granted(await node.ask(by_client("web"))) == "the node"
    assert node.node_tokens.calls == [("", VAULT.resource), (client_id("web"), VAULT.resource)]
    assert node.tokens.calls == []


@pytest.mark.parametrize("things", EXCEPTED.values(), ids=EXCEPTED)
async def test_an_excepted_pod_that_asks_before_the_rules_are_known_waits_for_them_and_no_longer(
    node: Node, things: list[Thing]
) -> None:
    """NMI has just started: pods are listed before the exception rules."""
    reader = Reader()
    node.follow(reader)
    who, *rules = things
    reader.tell(Seen(who))
    asked = node.asking()
    await node.clock.advance(30)
    before = (asked.done(), node.service.at_once(ADDRESS, VAULT))
    reader.tell(*map(Seen, rules), Synced())
    await settle()

    assert before == (False, None)
    assert granted(await asked) == "the node"
    assert node.tokens.calls == []


async def test_a_pod_that_asks_before_the_rules_are_known_gets_no_token_of_its_assignment(node: Node) -> None:
    reader = Reader()
    node.follow(reader)
    reader.tell(Seen(WEB), Seen(ASSIGNED))
    asked = node.asking()

    assert denied(await node.answer(asked, within_s=60)) == because(Reason.NOT_READ_YET, node="node-1")
    assert node.tokens.calls == []


async def test_a_rule_that_is_withdrawn_ends_the_exception_although_the_token_is_still_kept(node: Node) -> None:
    await node.start(replace(WEB, labels={"app": "agent"}), exception_rule(), ASSIGNED)
    granted(await node.ask())
    node.cluster.remove(exception_rule())
    await settle()

    assert granted(await node.ask()) == "web"


@pytest.mark.parametrize(
    "error", [TransientError("IMDS is away"), TokenRefused("no", status=400, body=b"{}")], ids=["transient", "refused"]
)
async def test_what_the_token_service_says_reaches_the_caller(node: Node, error: Exception) -> None:
    await node.start(WEB, ASSIGNED)
    node.tokens.fail_next(error)
    asked = node.asking()
    await settle()

    assert asked.exception() is error


async def test_a_caller_who_leaves_leaves_nothing_behind(node: Node) -> None:
    await node.start(WEB, CREATED)
    asked = [node.asking(), node.asking(address="10.0.0.99")]
    await settle()
    for one in asked:
        one.cancel()
    await settle()

    assert node.service.waiting == 0
    assert node.clock.next_wake_s() is None


class TestSecondLook:
    """Before an unknown address is refused, the API server itself is asked, once for all who wait for it."""

    async def test_a_pod_that_the_watch_has_missed_is_served(self, node: Node) -> None:
        reader = Reader()
        node.follow(reader)
        reader.tell(Seen(ASSIGNED), Synced())
        node.cluster.put(WEB)

        answer = await node.ask(within_s=0.3)

        assert granted(answer) == "web"

    async def test_a_pod_that_the_watch_brings_in_time_costs_no_look(self, node: Node) -> None:
        await node.start(ASSIGNED)
        asked = node.asking()
        await node.clock.advance(0.2)
        node.cluster.put(WEB)
        await settle()

        assert granted(await asked) == "web"
        assert node.looks == 0

    async def test_many_unknown_addresses_cost_one_look_a_second(self, node: Node) -> None:
        await node.start(WEB, ASSIGNED)
        looks = []
        for _ in range(3):
            asked = [node.asking(address=f"10.0.1.{number}") for number in range(50)]
            await node.clock.advance(1.3)
            looks.append(node.looks)
            assert {denied(await one).reason for one in asked} == {Reason.UNKNOWN_POD}

        assert looks == [1, 2, 3]

    async def test_its_answer_is_for_one_request_only(self, node: Node) -> None:
        """Nobody would tell NMI when a pod goes that the watch has never brought."""
        reader = Reader()
        node.follow(reader)
        reader.tell(Seen(ASSIGNED), Synced())
        node.cluster.put(WEB)
        assert granted(await node.ask(within_s=0.3)) == "web"
        node.cluster.remove(WEB)
        await node.clock.advance(1)

        assert denied(await node.ask(within_s=1.2)).reason is Reason.UNKNOWN_POD

    @pytest.mark.parametrize(
        "pods",
        [
            [replace(WEB, phase=PodPhase.FAILED)],
            [replace(WEB, host_network=True)],
            [replace(WEB, ips=("10.0.0.8",))],
        ],
        ids=["finished", "host network", "another address"],
    )
    async def test_it_follows_the_same_rules_as_the_watch(self, node: Node, pods: list[Pod]) -> None:
        reader = Reader()
        node.follow(reader)
        reader.tell(Seen(ASSIGNED), Synced())
        for one in pods:
            node.cluster.put(one)

        assert denied(await node.ask(within_s=1.2)).reason is Reason.UNKNOWN_POD

    async def test_two_pods_of_one_address_are_refused_here_too(self, node: Node) -> None:
        reader = Reader()
        node.follow(reader)
        reader.tell(Seen(ASSIGNED), Synced())
        node.cluster.put(WEB)
        node.cluster.put(pod("other", ips=(ADDRESS,)))

        assert denied(await node.ask(within_s=0.3)).reason is Reason.AMBIGUOUS_POD

    async def test_an_api_server_that_is_away_is_no_reason_to_serve_or_to_fail(self, node: Node) -> None:
        await node.start(ASSIGNED)
        node.cluster.fail_next(TransientError("no API server"), operation="pods")

        assert denied(await node.ask(within_s=1.2)).reason is Reason.UNKNOWN_POD

    async def test_known_pods_never_cause_one(self, node: Node) -> None:
        await node.start(WEB, ASSIGNED)
        for _ in range(3):
            await node.ask()

        assert node.looks == 0


class TestLimits:
    """However many ask, those that wait are bounded, and the end of this NMI is the end of every wait."""

    async def test_one_pod_cannot_take_all_places(self, node: Node) -> None:
        other = pod("other", ips=("10.0.0.8",))
        await node.start(WEB, other, assignment(other))
        waiting = [node.asking() for _ in range(MOST_OF_ONE_ADDRESS)]
        await settle()

        assert denied(await node.ask()) == because(Reason.TOO_MANY_WAIT, whose=f"from {ADDRESS}")
        assert granted(await node.ask(address="10.0.0.8")) == "web"
        node.cluster.put(ASSIGNED)
        await settle()
        assert {granted(await one) for one in waiting} == {"web"}

    async def test_a_node_has_a_limit_too(self, node: Node) -> None:
        addresses = [f"10.0.1.{number}" for number in range(MOST_WAITING // MOST_OF_ONE_ADDRESS)]
        await node.start(*(pod(f"pod-{address[7:]}", ips=(address,)) for address in addresses), WEB)
        waiting = [node.asking(address=address) for address in addresses for _ in range(MOST_OF_ONE_ADDRESS)]
        await settle()

        assert denied(await node.ask()) == because(Reason.TOO_MANY_WAIT, whose="on this node")
        assert node.meter.gauges["nmi_waiting_requests"] == MOST_WAITING
        await node.clock.advance(80)
        assert {denied(await one).reason for one in waiting} == {Reason.NO_IDENTITY}
        assert node.meter.gauges["nmi_waiting_requests"] == 0

    async def test_at_the_end_all_who_wait_are_told_to_ask_again(self, node: Node) -> None:
        await node.start(WEB)
        waiting = [node.asking(), node.asking(address="10.0.0.99")]
        await settle()
        node.service.end_waits()
        await settle()

        assert [denied(await one).reason for one in waiting] == [Reason.ENDING] * 2
        assert denied(await node.ask()).reason is Reason.ENDING

    async def test_after_the_end_of_waits_what_can_be_answered_still_is(self, node: Node) -> None:
        await node.start(WEB, ASSIGNED)
        node.service.end_waits()

        assert granted(await node.ask()) == "web"


def principal(name: str = "sp", **fields: Any) -> Identity:
    made = identity(name, kind=IdentityKind.SERVICE_PRINCIPAL, namespace=fields.pop("namespace", "default"))
    return replace(made, **{"tenant_id": "home", "secret": Key("default", "sp"), **fields})


class TestServicePrincipals:
    """Identities whose tokens depend on more than their client ID."""

    @pytest.mark.parametrize(
        "other",
        [
            {"tenant_id": "elsewhere"},
            {"secret": Key("default", "other")},
            {"ad_endpoint": "https://login.example"},
            {"namespace": "elsewhere"},
        ],
        ids=["tenant", "secret", "endpoint", "namespace"],
    )
    async def test_one_client_id_with_other_circumstances_shares_no_token(
        self, node: Node, other: dict[str, Any]
    ) -> None:
        second = pod("second", ips=("10.0.0.8",))
        changed = replace(principal(**other), client_id=principal().client_id)
        await node.start(WEB, second, assignment(WEB, principal()), assignment(second, changed))

        answers = [await node.ask(), await node.ask(address="10.0.0.8")]

        assert len({answer.tokens for answer in answers if isinstance(answer, Granted)}) == 2

    async def test_auxiliary_tenants_get_a_token_each_the_main_one_first(self, node: Node) -> None:
        await node.start(WEB, assignment(WEB, principal(auxiliary_tenant_ids=("a", "b"))))

        first, second = await node.ask(), node.service.at_once(ADDRESS, VAULT)

        assert isinstance(first, Granted)
        assert [token.token for token in first.tokens] == ["token-1", "token-2", "token-3"]
        assert second == replace(first, kept=True)
        assert node.tokens.tenants == ["home", "a", "b"]

    async def test_more_tenants_than_azure_knows_are_refused(self, node: Node) -> None:
        await node.start(WEB, assignment(WEB, principal(auxiliary_tenant_ids=("a", "b", "c", "d"))))

        explanation = denied(await node.ask())

        assert explanation.reason is Reason.CREDENTIAL_UNUSABLE
        assert "AzureIdentity default/sp: spec.auxiliaryTenantIDs names 4 tenants" in str(explanation)
        assert node.tokens.calls == []

    async def test_a_tenant_that_fails_fails_the_answer(self, node: Node) -> None:
        await node.start(WEB, assignment(WEB, principal(auxiliary_tenant_ids=("a",))))
        asked = node.asking()
        node.tokens.fail_next(TransientError("Entra is away"))

        with pytest.raises(TransientError):
            await asked


class TestManaged:
    """Nobody writes assignments: identities and bindings of the pod's namespace say it all."""

    async def test_a_pod_gets_what_its_bindings_give_it(self, node: Node) -> None:
        await node.start(
            WEB, identity(), binding(), identity("db"), binding("db"), identity("x"), binding("x", selector="x")
        )

        assert granted(await node.ask()) == "db"
        assert granted(await node.ask(by_client("web"))) == "web"
        assert denied(await node.ask(by_client("x"), within_s=80)).reason is Reason.NO_SUCH_IDENTITY

    @pytest.mark.parametrize(
        "things",
        [
            [WEB, identity()],
            [WEB, binding()],
            [WEB, identity(namespace="other"), binding(namespace="other")],
            [replace(WEB, label=None), identity(), binding(selector="")],
            [replace(WEB, label=""), identity(), binding(selector="")],
        ],
        ids=["no binding", "no identity", "other namespace", "no label", "empty label"],
    )
    async def test_a_pod_that_no_binding_serves_gets_nothing(self, node: Node, things: list[Thing]) -> None:
        await node.start(*things)

        assert denied(await node.ask(within_s=80)).reason is Reason.NO_IDENTITY

    @pytest.mark.parametrize(
        "change",
        [
            lambda node: node.cluster.remove(binding()),
            lambda node: node.cluster.remove(identity()),
            lambda node: node.cluster.put(binding(selector="other")),
            lambda node: node.cluster.put(replace(WEB, label="other")),
        ],
        ids=["binding gone", "identity gone", "another selector", "another label"],
    )
    async def test_a_change_counts_at_once_although_the_token_is_kept(
        self, node: Node, change: Callable[[Node], object]
    ) -> None:
        await node.start(WEB, identity(), binding())
        await node.ask()
        before = node.service.at_once(ADDRESS, VAULT)
        change(node)
        await settle()

        assert before is not None
        assert node.service.at_once(ADDRESS, VAULT) is None


class TestHostTokens:
    """A program of the node names the pod for which it asks."""

    async def ask(self, node: Node, name: str, *, within_s: float = 0.0) -> Granted | Denied:
        asked = asyncio.create_task(node.service.answer_host("127.0.0.1", Key("default", name), VAULT))
        return await node.answer(asked, within_s=within_s)

    async def test_an_assignment_is_enough(self, node: Node) -> None:
        await node.start(ASSIGNED)

        assert granted(await self.ask(node, WEB.name)) == "web"

    async def test_it_waits_as_the_pod_itself_would(self, node: Node) -> None:
        await node.start(WEB)

        assert denied(await self.ask(node, WEB.name, within_s=80)).reason is Reason.NO_IDENTITY

    async def test_no_exception_counts(self, node: Node) -> None:
        await node.start(replace(WEB, labels={"app": "agent"}), exception_rule())

        assert denied(await self.ask(node, WEB.name, within_s=80)).reason is Reason.NO_IDENTITY

    async def test_in_managed_mode_the_pod_must_be_on_this_node(self, node: Node) -> None:
        await node.start(WEB, identity(), binding())

        assert granted(await self.ask(node, WEB.name)) == "web"
        assert denied(await self.ask(node, "elsewhere", within_s=80)).reason is Reason.NO_IDENTITY


class TestAtOnce:
    """The answer that takes neither a wait nor a call, for the many requests that a kept token answers."""

    async def test_it_is_what_answer_says(self, node: Node) -> None:
        await node.start(WEB, ASSIGNED)
        await node.ask()
        asked = await node.ask()

        assert node.service.at_once(ADDRESS, VAULT) == asked
        assert node.service.at_once(ADDRESS, by_client("web")) == asked
        assert len(node.tokens.calls) == 1

    async def test_an_excepted_pod_gets_the_node_s_kept_token(self, node: Node) -> None:
        await node.start(replace(WEB, labels={"app": "agent"}), exception_rule(), ASSIGNED)
        before = node.service.at_once(ADDRESS, VAULT)
        await node.ask()
        asked = await node.ask()

        assert (before, node.service.at_once(ADDRESS, VAULT)) == (None, asked)
        assert node.service.at_once(ADDRESS, by_client("web")) is None

    async def test_without_a_kept_token_there_is_none(self, node: Node) -> None:
        await node.start(WEB, ASSIGNED, assignment(WEB, identity("db")))
        await node.ask(by_client("db"))

        assert node.service.at_once(ADDRESS, by_client("web")) is None
        assert node.service.at_once(ADDRESS, replace(by_client("db"), resource="https://x")) is None
        assert len(node.tokens.calls) == 1

    @pytest.mark.parametrize(
        "change",
        [
            lambda node: node.cluster.remove(ASSIGNED),
            lambda node: node.cluster.put(CREATED),
            lambda node: node.cluster.put(replace(ASSIGNED, state=AssignmentState.UNASSIGNED)),
            lambda node: node.cluster.put(replace(ASSIGNED, identity=identity(client=""))),
            lambda node: node.cluster.remove(WEB),
            lambda node: node.cluster.put(replace(WEB, phase=PodPhase.SUCCEEDED)),
            lambda node: node.cluster.put(replace(WEB, ips=("10.0.0.8",))),
            lambda node: node.cluster.put(pod("other", ips=(ADDRESS,))),
            lambda node: node.cluster.put(exception_rule(pod_labels={"app": "web"})),
        ],
        ids=["revoked", "Created", "leaving", "no client ID", "gone", "finished", "moved", "ambiguous", "excepted"],
    )
    async def test_a_kept_token_is_not_answered_when_the_cluster_says_otherwise(
        self, node: Node, change: Callable[[Node], object]
    ) -> None:
        await node.start(replace(WEB, labels={"app": "web"}), ASSIGNED)
        await node.ask()
        before = node.service.at_once(ADDRESS, VAULT)
        change(node)
        await settle()

        assert before is not None
        assert node.service.at_once(ADDRESS, VAULT) is None

    async def test_a_token_that_is_due_for_renewal_is_answered_the_long_way(self, node: Node) -> None:
        await node.start(WEB, ASSIGNED)
        await node.ask()
        half_s = node.tokens.lifetime_s / 2
        await node.clock.advance(half_s - 1)
        before = node.service.at_once(ADDRESS, VAULT)
        await node.clock.advance(1)

        assert before is not None
        assert node.service.at_once(ADDRESS, VAULT) is None

    async def test_before_everything_has_been_seen_there_is_none(self, node: Node) -> None:
        reader = Reader()
        await node.start(WEB, ASSIGNED)
        await node.ask()
        kept = node.service._cache
        node.follow(reader)
        node.service._cache = kept
        reader.tell(Seen(WEB), Seen(ASSIGNED))
        await settle()
        before = node.service.at_once(ADDRESS, VAULT)
        reader.tell(Synced())
        await settle()

        assert before is None
        assert node.service.at_once(ADDRESS, VAULT) is not None

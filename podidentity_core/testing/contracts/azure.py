"""What every implementation of `HostIdentities`, `TokenSource` and `NodeTokenSource` must do.

Subclass a contract, name the subclass `Test...`, and give it the fixture `world`: the implementation, and another way
to the service behind it, so that the implementation is not used to check itself.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import pytest

from podidentity_core.errors import (
    Conflict,
    IdentitiesRefused,
    NotFound,
    RefusedError,
    Throttled,
    TokenRefused,
    TransientError,
)
from podidentity_core.model import Identity
from podidentity_core.ports import HostIdentities, NodeTokenSource, TokenSource
from podidentity_core.resource_ids import Host, IdentityResource, parse_identity_resource
from podidentity_core.token_request import Selector, SelectorKind

PATIENCE_S = 20.0
"""How long anything may take; a test that hits this fails."""


class HostWorld(Protocol):
    """The implementation, and the cloud behind it as tests see and set it. A write must take a noticeable time."""

    hosts: HostIdentities
    host: Host
    missing: Host

    def identity(self, name: str) -> IdentityResource:
        """Return an identity of that name, which exists and may be put on hosts."""
        ...

    def put(self, *identities: IdentityResource, system_assigned: bool = False, deleting: bool = False) -> None:
        """Let `host` carry just these, as if since long ago."""
        ...

    def refuse(self, identity: IdentityResource) -> None:
        """Refuse writes that name *identity*."""
        ...

    def listed(self) -> frozenset[IdentityResource]:
        """What `host` lists."""
        ...

    def usable(self) -> frozenset[IdentityResource]:
        """What pods on `host` can get tokens for."""
        ...

    def has_system_assigned(self) -> bool:
        """Whether `host` has a system-assigned identity."""
        ...

    def writes(self) -> int:
        """How many writes `host` has taken."""
        ...

    def preempt(self, identity: IdentityResource) -> None:
        """Let somebody else put *identity* on `host`, by a write that begins now."""
        ...


async def _until_written(world: HostWorld, writes: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while world.writes() < writes:  # noqa: ASYNC110  -- a real service has no event to wait for
            await asyncio.sleep(0.005)


class HostIdentitiesContract:
    """Subclass it, and give it the fixture `world`."""

    async def test_what_somebody_else_put_there_is_attached(self, world: HostWorld) -> None:
        world.put(world.identity("theirs"), system_assigned=True)

        state = await world.hosts.attached(world.host)

        assert state.attached == {world.identity("theirs")}
        assert not state.deleting

    async def test_a_bare_host_carries_nothing(self, world: HostWorld) -> None:
        world.put()

        assert (await world.hosts.attached(world.host)).attached == frozenset()

    async def test_what_is_added_can_be_used_on_return(self, world: HostWorld) -> None:
        world.put()

        state = await world.hosts.change(world.host, add=[world.identity("a"), world.identity("b")], remove=[])

        assert state.attached == {world.identity("a"), world.identity("b")}
        assert world.usable() == state.attached

    async def test_what_is_removed_is_gone_on_return(self, world: HostWorld) -> None:
        world.put(world.identity("a"), world.identity("b"))

        state = await world.hosts.change(world.host, add=[], remove=[world.identity("a")])

        assert state.attached == world.listed() == world.usable() == {world.identity("b")}

    async def test_additions_and_removals_go_together(self, world: HostWorld) -> None:
        world.put(world.identity("a"))

        await world.hosts.change(world.host, add=[world.identity("b")], remove=[world.identity("a")])

        assert world.listed() == {world.identity("b")}
        assert world.writes() == 1

    @pytest.mark.parametrize("present", [False, True])
    async def test_an_identity_in_both_lists_stays(self, world: HostWorld, present: bool) -> None:
        world.put(*([world.identity("a")] if present else []))

        state = await world.hosts.change(world.host, add=[world.identity("a")], remove=[world.identity("a")])

        assert state.attached == world.listed() == {world.identity("a")}

    async def test_repeating_a_change_is_harmless_and_no_write(self, world: HostWorld) -> None:
        world.put(world.identity("b"))
        first = await world.hosts.change(world.host, add=[world.identity("a")], remove=[world.identity("b")])

        second = await world.hosts.change(world.host, add=[world.identity("a")], remove=[world.identity("b")])

        assert second == first
        assert world.writes() == 1

    async def test_identities_that_are_not_named_are_left(self, world: HostWorld) -> None:
        world.put(world.identity("theirs"), world.identity("b"))

        await world.hosts.change(world.host, add=[world.identity("a")], remove=[world.identity("b")])

        assert world.listed() == {world.identity("theirs"), world.identity("a")}

    async def test_a_system_assigned_identity_survives_the_first_and_the_last_of_the_others(
        self, world: HostWorld
    ) -> None:
        world.put(system_assigned=True)

        await world.hosts.change(world.host, add=[world.identity("a")], remove=[])
        assert world.has_system_assigned()
        state = await world.hosts.change(world.host, add=[], remove=[world.identity("a")])

        assert state.attached == world.listed() == frozenset()
        assert world.has_system_assigned()

    async def test_the_last_identity_of_a_host_can_be_removed(self, world: HostWorld) -> None:
        world.put(world.identity("a"))

        state = await world.hosts.change(world.host, add=[], remove=[world.identity("a")])

        assert state.attached == world.listed() == frozenset()
        assert not world.has_system_assigned()

    @pytest.mark.parametrize("system_assigned", [False, True])
    async def test_removing_what_is_not_there_is_no_write(self, world: HostWorld, system_assigned: bool) -> None:
        world.put(system_assigned=system_assigned)

        state = await world.hosts.change(world.host, add=[], remove=[world.identity("a")])

        assert state.attached == frozenset()
        assert world.writes() == 0
        assert world.has_system_assigned() == system_assigned

    async def test_spellings_of_one_id_are_one_identity(self, world: HostWorld) -> None:
        world.put(world.identity("a"))
        shouted = parse_identity_resource(world.identity("a").text.upper())

        assert shouted in (await world.hosts.change(world.host, add=[shouted], remove=[])).attached
        assert world.writes() == 0
        await world.hosts.change(world.host, add=[], remove=[shouted])

        assert world.listed() == frozenset()

    async def test_a_refused_identity_is_named_and_nothing_is_done(self, world: HostWorld) -> None:
        world.put(world.identity("b"))
        world.refuse(world.identity("a"))

        with pytest.raises(IdentitiesRefused) as caught:
            await world.hosts.change(
                world.host, add=[world.identity("a"), world.identity("a2")], remove=[world.identity("b")]
            )

        assert {text.lower() for text in caught.value.resource_ids} == {world.identity("a").key}
        assert world.listed() == {world.identity("b")}

    async def test_a_host_that_does_not_exist_is_not_found(self, world: HostWorld) -> None:
        with pytest.raises(NotFound):
            await world.hosts.attached(world.missing)
        with pytest.raises(NotFound):
            await world.hosts.change(world.missing, add=[world.identity("a")], remove=[])

    async def test_a_host_that_is_being_deleted_says_so_and_takes_nothing(self, world: HostWorld) -> None:
        world.put(world.identity("b"), deleting=True)

        assert (await world.hosts.attached(world.host)).deleting
        with pytest.raises(RefusedError):
            await world.hosts.change(world.host, add=[world.identity("a")], remove=[])

        assert world.writes() == 0

    async def test_a_write_that_a_newer_one_replaces_is_a_conflict(self, world: HostWorld) -> None:
        world.put()
        change = asyncio.create_task(world.hosts.change(world.host, add=[world.identity("a")], remove=[]))
        await _until_written(world, 1)

        world.preempt(world.identity("theirs"))

        with pytest.raises(Conflict):
            await asyncio.wait_for(change, PATIENCE_S)
        state = await world.hosts.change(world.host, add=[world.identity("a")], remove=[])
        assert state.attached == world.usable() == {world.identity("a"), world.identity("theirs")}

    async def test_after_a_call_that_was_cut_off_both_methods_wait_for_its_end(self, world: HostWorld) -> None:
        world.put()
        change = asyncio.create_task(world.hosts.change(world.host, add=[world.identity("a")], remove=[]))
        await _until_written(world, 1)
        change.cancel()
        with pytest.raises(asyncio.CancelledError):
            await change

        state = await world.hosts.attached(world.host)
        assert state.attached == world.usable() == {world.identity("a")}
        await world.hosts.change(world.host, add=[world.identity("a")], remove=[])

        assert world.writes() == 1

    async def test_more_identities_than_one_write_can_name_are_all_put_there(self, world: HostWorld) -> None:
        world.put(world.identity("b"))
        many = [world.identity(f"many-{number}") for number in range(160)]

        state = await world.hosts.change(world.host, add=many, remove=[world.identity("b")])

        assert state.attached == world.usable() == set(many)


class TokenWorld(Protocol):
    """The implementation, and the service behind it as tests set it."""

    tokens: TokenSource

    def identity(self) -> Identity:
        """Return an identity that the service knows."""
        ...

    def unknown(self) -> Identity:
        """Return an identity that the service does not know."""
        ...

    def now_s(self) -> float:
        """Wall time."""
        ...

    def throttle(self, retry_after_s: float) -> None:
        """Answer every further call with: too often, wait so long."""
        ...

    def break_down(self) -> None:
        """Answer no further call in a useful way."""
        ...


RESOURCE = "https://vault.azure.net"


class TokenSourceContract:
    """Subclass it, and give it the fixture `world`."""

    async def test_a_token_comes_with_its_expiry_and_its_other_members(self, world: TokenWorld) -> None:
        token = await world.tokens.issue(world.identity(), RESOURCE)

        fields = dict(token.fields)
        assert token.token
        assert token.expires_on_s > world.now_s()
        assert not fields.keys() & {"access_token", "expires_in", "expires_on"}
        assert fields["resource"] == RESOURCE
        assert fields["token_type"] == "Bearer"  # noqa: S105  -- not a secret
        assert token.token not in repr(token)

    async def test_an_unknown_identity_is_refused_in_the_words_of_the_service(self, world: TokenWorld) -> None:
        with pytest.raises(TokenRefused) as caught:
            await world.tokens.issue(world.unknown(), RESOURCE)

        assert 400 <= caught.value.status < 500
        assert b"error" in caught.value.body
        assert "json" in dict(caught.value.headers)["content-type"]

    async def test_being_throttled_says_how_long(self, world: TokenWorld) -> None:
        world.throttle(7.0)

        with pytest.raises(Throttled) as caught:
            await world.tokens.issue(world.identity(), RESOURCE)

        assert caught.value.retry_after_s == 7.0

    async def test_a_service_that_does_not_work_is_a_passing_trouble(self, world: TokenWorld) -> None:
        world.break_down()

        with pytest.raises(TransientError):
            await world.tokens.issue(world.identity(), RESOURCE)


class NodeTokenWorld(Protocol):
    """The implementation on a node that carries several identities."""

    tokens: NodeTokenSource

    def default_client_id(self) -> str:
        """Return the client ID of the node's default identity; empty if the implementation does not tell."""
        ...

    def other_client_id(self) -> str:
        """Return the client ID of another identity on the node."""
        ...


class NodeTokenSourceContract:
    """Subclass it, and give it the fixture `world`."""

    async def test_without_a_selector_the_node_answers_with_its_default(self, world: NodeTokenWorld) -> None:
        token = await world.tokens.issue_for_node(None, RESOURCE)

        assert dict(token.fields)["client_id"] == world.default_client_id()

    async def test_a_selector_chooses_among_the_nodes_identities(self, world: NodeTokenWorld) -> None:
        wanted = world.other_client_id()

        token = await world.tokens.issue_for_node(Selector(SelectorKind.CLIENT_ID, wanted, wanted.lower()), RESOURCE)

        assert dict(token.fields)["client_id"] == wanted

"""Which PATCH bodies bring a host's identities to what is wanted."""

from __future__ import annotations

import random
from typing import Any

import pytest

from podidentity_azure.identity_block import MAX_ENTRIES, attached_identities, identity_patches, unsettled
from podidentity_core.resource_ids import IdentityResource
from podidentity_core.testing.builders import resource

A, B, C = resource("a"), resource("b"), resource("c")
SETTLED = {"principalId": "p", "clientId": "c"}


def block(kind: str | None, *held: IdentityResource, value: Any = SETTLED) -> dict[str, Any] | None:
    if kind is None:
        return None
    listed = {"userAssignedIdentities": {entry.text: value for entry in held}} if held else {}
    return {"type": kind, **listed}


BOTH = "SystemAssigned, UserAssigned"


@pytest.mark.parametrize(
    ("current", "add", "remove", "kind", "entries"),
    [
        pytest.param(block(None), [A], [], "UserAssigned", {A.text: {}}, id="first, no block"),
        pytest.param(block("None"), [A], [], "UserAssigned", {A.text: {}}, id="first, type None"),
        pytest.param(block("UserAssigned", B), [A], [], "UserAssigned", {A.text: {}}, id="another"),
        pytest.param(block("UserAssigned", A, B), [], [A], "UserAssigned", {A.text: None}, id="one of two goes"),
        pytest.param(block("UserAssigned", A), [B], [A], "UserAssigned", {B.text: {}, A.text: None}, id="exchange"),
        pytest.param(block("UserAssigned", A), [], [A], "None", None, id="last goes"),
        pytest.param(block("SystemAssigned"), [A], [], BOTH, {A.text: {}}, id="first, beside system"),
        pytest.param(block(BOTH, B), [A], [], BOTH, {A.text: {}}, id="another, beside system"),
        pytest.param(block(BOTH, A), [], [A], "SystemAssigned", None, id="last goes, system stays"),
        pytest.param(block("systemassigned,USERASSIGNED", A), [], [A], "SystemAssigned", None, id="other case"),
        pytest.param(block("systemAssigned"), [A], [], BOTH, {A.text: {}}, id="system in other case"),
        pytest.param(block("userAssigned", A), [B], [], "UserAssigned", {B.text: {}}, id="user in other case"),
        pytest.param(block("ActAs, UserAssigned", A), [], [A], "ActAs", None, id="a type of the future is kept"),
        pytest.param(block(""), [A], [], "UserAssigned", {A.text: {}}, id="empty type"),
    ],
)
def test_one_body_is_enough(
    current: dict[str, Any] | None,
    add: list[IdentityResource],
    remove: list[IdentityResource],
    kind: str,
    entries: dict[str, Any] | None,
) -> None:
    wanted: dict[str, Any] = {"type": kind}
    if entries is not None:
        wanted["userAssignedIdentities"] = entries

    assert identity_patches(current, add, remove) == ({"identity": wanted},)


@pytest.mark.parametrize(
    ("current", "add", "remove"),
    [
        pytest.param(block(None), [], [], id="nothing wanted"),
        pytest.param(block(None), [], [A], id="removed already, no block"),
        pytest.param(block("SystemAssigned"), [], [A], id="removed already, system"),
        pytest.param(block("UserAssigned", A), [A], [B], id="as wanted"),
        pytest.param(block("UserAssigned", A), [A], [A], id="in both lists, there"),
        pytest.param(block("UserAssigned", resource("A")), [A], [], id="there in other letter case"),
    ],
)
def test_nothing_to_change_is_no_body(
    current: dict[str, Any] | None, add: list[IdentityResource], remove: list[IdentityResource]
) -> None:
    assert identity_patches(current, add, remove) == ()


def test_an_identity_goes_under_the_name_that_arm_gives_it() -> None:
    listed = A.text.replace("resourcegroups", "resourceGroups")
    current = {"type": "UserAssigned", "userAssignedIdentities": {listed: SETTLED, B.text: SETTLED}}

    assert identity_patches(current, [], [A]) == (
        {"identity": {"type": "UserAssigned", "userAssignedIdentities": {listed: None}}},
    )


def test_an_entry_that_is_no_identity_of_ours_is_not_lost_with_the_last_of_ours() -> None:
    current = {"type": "UserAssigned", "userAssignedIdentities": {A.text: SETTLED, "/odd": SETTLED}}

    (patch,) = identity_patches(current, [], [A])

    assert patch["identity"] == {"type": "UserAssigned", "userAssignedIdentities": {A.text: None}}
    assert attached_identities(current) == {A}


def test_an_identity_is_unsettled_while_its_entry_is_empty() -> None:
    listed = block("UserAssigned", A, value={})

    assert unsettled(listed, [A])
    assert not unsettled(listed, [B])
    assert not unsettled(block("UserAssigned", A), [A])
    assert attached_identities(listed) == {A}
    assert attached_identities(listed, only_settled=True) == frozenset()


def test_what_a_failed_operation_left_behind_is_added_again_if_asked() -> None:
    listed = block("UserAssigned", A, value={})

    assert identity_patches(listed, [A], []) == ()
    assert identity_patches(listed, [A], [], renew=True) == (
        {"identity": {"type": "UserAssigned", "userAssignedIdentities": {A.text: {}}}},
    )


def applied(current: dict[str, Any] | None, patch: dict[str, Any]) -> dict[str, Any] | None:
    """What ARM makes of a PATCH, by its documented rules."""
    change = patch["identity"]
    held = dict((current or {}).get("userAssignedIdentities") or {})
    if "UserAssigned" not in change["type"]:
        assert "userAssignedIdentities" not in change, "ARM refuses the map beside such a type"
        held = {}
    for text, value in change.get("userAssignedIdentities", {}).items():
        if value is None:
            held = {key: kept for key, kept in held.items() if key.lower() != text.lower()}
        elif text.lower() not in {key.lower() for key in held}:
            held[text] = SETTLED
    assert bool(held) == ("UserAssigned" in change["type"]), "ARM refuses UserAssigned with nothing left"
    return None if change["type"] == "None" else {"type": change["type"], "userAssignedIdentities": held}


@pytest.mark.parametrize("seed", range(60))
def test_applying_the_bodies_reaches_what_is_wanted_and_leaves_the_rest(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  -- a test's choice is no secret
    everything = [resource(f"id-{number}") for number in range(500)]
    held = chance.sample(everything, chance.choice([0, 1, 5, 200]))
    add = chance.sample(everything, chance.choice([0, 1, 3, 250]))
    remove = chance.sample(everything, chance.choice([0, 1, 3, 250])) if seed % 3 else list(held)
    system = chance.choice([True, False])
    kinds = ["SystemAssigned"] * system + ["UserAssigned"] * bool(held)
    current = block(", ".join(kinds) or None, *held)

    bodies = identity_patches(current, add, remove)
    for body in bodies:
        assert len(body["identity"].get("userAssignedIdentities", {})) <= MAX_ENTRIES
        current = applied(current, body)

    assert attached_identities(current) == (frozenset(held) - frozenset(remove)) | frozenset(add)
    assert ("SystemAssigned" in (current or {}).get("type", "")) == system
    assert identity_patches(current, add, remove) == ()
    assert len(bodies) <= -(-len({*add, *remove}) // MAX_ENTRIES)

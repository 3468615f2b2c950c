"""What is planned anew while a turn is under way: the turn goes by the newest plan, not by that of its beginning."""

from podidentity_core.model import IdentityKind
from podidentity_core.testing.builders import binding, identity, node, pod, resource
from podidentity_core.testing.fakes import Call
from tests.core.mic import ARM_S, Mic

SECRET = identity("a", kind=IdentityKind.SERVICE_PRINCIPAL)


def slow(mic: Mic, seconds: float) -> None:
    fast = mic.cluster._called

    async def called(call: Call) -> None:
        await mic.clock.sleep(seconds)
        await fast(call)

    mic.cluster._called = called  # type: ignore[method-assign]


async def test_a_pod_that_goes_while_its_assignment_is_being_created_leaves_none() -> None:
    mic = Mic(node(), SECRET, binding("a"), pod())
    slow(mic, 1.0)
    await mic.start()
    await mic.after(0.5)
    mic.remove(pod())
    await mic.after(600)
    await mic.crash()
    assert mic.states == {}


async def test_a_pod_that_is_back_keeps_its_assignment() -> None:
    mic = Mic(node(), SECRET, binding("a"), identity(), binding(), pod())
    await mic.start()
    await mic.after(2 * ARM_S)
    assert set(mic.states.values()) == {"Assigned"}
    slow(mic, 1.0)
    mic.remove(pod())
    await mic.after(0.5)  # web-0-default-a is being released; it needs nothing on the host
    mic.put(pod(uid="next"))
    await mic.after(60)
    await mic.crash()
    assert not any(c.operation == "delete" and c.key.name == "web-0-default-web" for c in mic.cluster.calls), (
        mic.cluster.calls
    )


async def test_a_pod_that_is_back_keeps_its_identity_ours_through_a_crash() -> None:
    mic = Mic(node(), SECRET, binding("a"), identity(), binding(), pod())
    await mic.start()
    await mic.after(2 * ARM_S)
    slow(mic, 1.0)
    mic.remove(pod())
    await mic.after(0.5)
    mic.put(pod(uid="next"))
    for _ in range(100):
        await mic.after(0.05)
        if "web-0-default-web" not in mic.states:
            break
    await mic.crash()
    await mic.start()
    await mic.after(60)
    mic.remove(pod())
    await mic.after(60)
    await mic.crash()
    assert (mic.states, mic.on()) == ({}, set())


async def test_an_identity_that_is_needed_again_during_the_pause_after_a_refusal_is_not_removed() -> None:
    mic = Mic(node(), identity(), binding(), pod(), identity("bad"), binding("bad", selector="bad"))
    mic.hosts.refuse(resource("bad"))
    await mic.start()
    await mic.after(2 * ARM_S)
    assert mic.states == {"web-0-default-web": "Assigned"}
    mic.remove(pod())
    mic.put(pod("other", label="bad"))
    await mic.after(0.5)  # refused because of `bad`; the rest is written after a pause of a second
    mic.put(pod(uid="next"))
    await mic.after(0)
    assert mic.states["web-0-default-web"] == "Assigned"
    for _ in range(100):
        await mic.after(0.1)
        assert mic.on() == {"web"}, f"removed at {mic.clock.monotonic_s()} although web-0 is there, states {mic.states}"
    await mic.crash()


async def test_two_pods_whose_names_join_alike_both_get_their_identities() -> None:
    """The original could not create the second one's assignment (its defect 29)."""
    first, second = pod("a-b", namespace="c"), pod("a", namespace="b-c")
    mic = Mic(node(), identity(), binding(), first, second)
    await mic.start()
    await mic.after(2 * ARM_S)
    held = {stored.pod: (stored.name, stored.state.value) for stored in mic.cluster.assignments.values()}
    mic.remove(first)
    await mic.after(2 * ARM_S)
    left = mic.states
    mic.remove(second)
    await mic.after(600)
    await mic.crash()

    usual, other = sorted(name for name, _ in held.values())
    assert (usual, other.startswith("a-b-c-web-"), held.keys()) == ("a-b-c-web", True, {first.key, second.key})
    assert {state for _, state in held.values()} == {"Assigned"}
    assert len(left) == 1
    assert (mic.states, mic.on()) == ({}, set())

"""Tokens are fetched once however many ask, renewed in time, and never handed out expired."""

from __future__ import annotations

import asyncio
import math

import pytest

from podidentity_core.errors import TokenRefused, TransientError
from podidentity_core.ports import AccessToken
from podidentity_core.services.token_cache import REFUSED_S, RETRY_S, SPARE_S, TokenCache
from podidentity_core.testing.builders import identity
from podidentity_core.testing.clock import FakeClock, settle
from podidentity_core.testing.fakes import FakeMeter, FakeTokens

HOUR_S = 3600.0


class Shop:
    """A cache in front of a token service whose tokens live an hour."""

    def __init__(self, *, capacity: int = 4096, duration_s: float = 0.0, longest_s: float = math.inf) -> None:
        self.clock = FakeClock()
        self.source = FakeTokens(self.clock, lifetime_s=HOUR_S, duration_s=duration_s)
        self.meter = FakeMeter()
        self.cache = TokenCache(self.clock, self.meter, longest_s=longest_s, capacity=capacity)

    async def get(self, key: str = "a") -> AccessToken:
        token = await self.cache.get(key, lambda: self.source.issue(identity(), key))
        assert token.expires_on_s > self.clock.wall_s(), "an expired token was handed out"
        return token

    @property
    def calls(self) -> int:
        return len(self.source.calls)


async def test_a_token_is_kept() -> None:
    shop = Shop()

    assert await shop.get() is await shop.get()
    assert shop.calls == 1


async def test_keys_do_not_share_tokens() -> None:
    shop = Shop()

    assert (await shop.get("a")).token != (await shop.get("b")).token


async def test_fifty_who_ask_at_once_cost_one_call() -> None:
    shop = Shop(duration_s=1)
    waiting = [asyncio.create_task(shop.get()) for _ in range(50)]
    await shop.clock.advance(1)

    assert len({token.token for token in await asyncio.gather(*waiting)}) == 1
    assert shop.calls == 1


async def test_all_who_wait_get_the_error_and_the_next_asks_anew() -> None:
    shop = Shop(duration_s=1)
    shop.source.fail_next(TransientError("no"))
    waiting = [asyncio.create_task(shop.get()) for _ in range(3)]
    await shop.clock.advance(1)

    assert [type(error) for error in await asyncio.gather(*waiting, return_exceptions=True)] == [TransientError] * 3
    assert shop.calls == 1
    again = asyncio.create_task(shop.get())
    await shop.clock.advance(1)
    assert (await again).token == "token-2"


async def test_a_refusal_reaches_the_caller_as_it_is() -> None:
    shop = Shop()
    refusal = TokenRefused("no", status=400, body=b"{}")
    shop.source.fail_next(refusal)

    with pytest.raises(TokenRefused) as caught:
        await shop.get()

    assert caught.value is refusal


async def test_a_token_is_renewed_in_the_background_after_half_of_its_life() -> None:
    shop = Shop()
    await shop.get()
    await shop.clock.advance(HOUR_S / 2 - 1)
    await shop.get()
    before = shop.calls
    await shop.clock.advance(1)

    assert (await shop.get()).token == "token-1"
    await settle()
    assert (before, shop.calls) == (1, 2)
    assert (await shop.get()).token == "token-2"


async def test_nobody_waits_for_a_renewal() -> None:
    shop = Shop()
    await shop.get()
    shop.source.duration_s = 10
    await shop.clock.advance(HOUR_S / 2)
    asked_at_s = shop.clock.monotonic_s()

    tokens = [await shop.get() for _ in range(3)]

    assert {token.token for token in tokens} == {"token-1"}
    assert (shop.clock.monotonic_s(), shop.calls) == (asked_at_s, 1)
    await shop.clock.advance(10)
    assert ((await shop.get()).token, shop.calls) == ("token-2", 2)


async def test_a_token_is_kept_when_its_renewal_fails_and_renewal_is_tried_again_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shop = Shop()
    await shop.get()
    await shop.clock.advance(HOUR_S / 2)
    for _ in range(3):
        shop.source.fail_next(TransientError("IMDS is away"))
        assert (await shop.get()).token == "token-1"
        await settle()
        assert (await shop.get()).token == "token-1"
        await shop.clock.advance(RETRY_S)

    assert shop.calls == 4
    assert [record.message for record in caplog.records] == [
        "a token could not be renewed and is kept until it expires, error: IMDS is away"
    ] * 3
    assert (await shop.get()).token == "token-1"
    await settle()
    assert (await shop.get()).token == "token-5"


async def test_a_token_with_little_left_is_not_handed_out() -> None:
    shop = Shop()
    await shop.get()
    await shop.clock.advance(HOUR_S - SPARE_S + 1)

    assert (await shop.get()).token == "token-2"


async def test_a_token_with_little_left_is_not_handed_out_even_if_there_is_no_other() -> None:
    shop = Shop()
    await shop.get()
    await shop.clock.advance(HOUR_S)
    shop.source.fail_next(TransientError("no"))

    with pytest.raises(TransientError):
        await shop.get()


async def test_a_new_token_of_a_short_life_is_handed_out_to_those_who_wait() -> None:
    shop = Shop()
    shop.source.lifetime_s = 5

    assert (await shop.get()).token == "token-1"
    assert (await shop.get()).token == "token-2"


@pytest.mark.parametrize("lifetime_s", [0.0, -1.0, -HOUR_S])
async def test_a_token_that_comes_expired_is_an_error(lifetime_s: float) -> None:
    shop = Shop()
    shop.source.lifetime_s = lifetime_s

    with pytest.raises(TransientError):
        await shop.get()


async def test_when_the_first_who_asks_leaves_the_others_get_their_token() -> None:
    shop = Shop(duration_s=1)
    first, second = asyncio.create_task(shop.get()), asyncio.create_task(shop.get())
    await settle()
    first.cancel()
    await shop.clock.advance(1)

    assert first.cancelled()
    assert (await second).token == "token-1"
    assert shop.calls == 1


async def test_when_all_leave_the_token_is_kept_for_the_next() -> None:
    shop = Shop(duration_s=1)
    only = asyncio.create_task(shop.get())
    await settle()
    only.cancel()
    await shop.clock.advance(1)

    assert ((await shop.get()).token, shop.calls) == ("token-1", 1)


async def test_an_error_that_nobody_waits_for_is_nobody_s_trouble() -> None:
    shop = Shop(duration_s=1)
    shop.source.fail_next(TransientError("no"))
    only = asyncio.create_task(shop.get())
    await settle()
    only.cancel()
    await shop.clock.advance(1)

    assert shop.calls == 1


async def test_it_keeps_those_that_were_used_last() -> None:
    shop = Shop(capacity=2)
    for key in ("a", "b", "a", "c"):
        await shop.get(key)
    before = shop.calls
    await shop.get("a")
    await shop.get("c")
    assert shop.calls == before == 3

    await shop.get("b")

    assert shop.calls == 4


async def test_its_version_says_that_a_kept_token_went() -> None:
    """Answers that were made of tokens are good until then, whatever other tokens come."""
    shop = Shop(capacity=2)
    versions = [shop.cache.version]
    for key in ("a", "b", "c"):  # the third takes the place of the first
        await shop.get(key)
        versions.append(shop.cache.version)
    await shop.clock.advance(HOUR_S / 2)
    await shop.get("c")
    await settle()  # its renewal
    versions.append(shop.cache.version)
    shop.cache.clear()
    versions.append(shop.cache.version)

    assert versions == [0, 0, 0, 1, 2, 3]


async def test_closing_it_ends_the_calls_that_are_under_way() -> None:
    shop = Shop(duration_s=10)
    waiting = asyncio.create_task(shop.get())
    await settle()
    await shop.cache.close()
    await settle()

    assert waiting.cancelled()
    assert shop.clock.next_wake_s() is None


async def test_a_refusal_is_not_asked_for_again_within_a_second_and_forgotten_then() -> None:
    shop = Shop()
    refusal = TokenRefused("no", status=400, body=b"{}")
    shop.source.fail_next(refusal)
    for _ in range(3):
        with pytest.raises(TokenRefused) as caught:
            await shop.get()
        assert caught.value is refusal
    calls = shop.calls
    await shop.clock.advance(REFUSED_S)

    assert (calls, (await shop.get()).token) == (1, "token-2")


async def test_a_refusal_concerns_its_own_key_only() -> None:
    shop = Shop()
    shop.source.fail_next(TokenRefused("no", status=400, body=b"{}"))
    with pytest.raises(TokenRefused):
        await shop.get("a")

    assert (await shop.get("b")).token == "token-2"


async def test_a_refused_renewal_takes_no_token_away() -> None:
    shop = Shop()
    await shop.get()
    await shop.clock.advance(HOUR_S / 2)
    shop.source.fail_next(TokenRefused("no longer", status=400, body=b"{}"))
    await shop.get()
    await settle()

    assert (await shop.get()).token == "token-1"


async def test_a_token_is_kept_no_longer_than_the_operator_wants() -> None:
    shop = Shop(longest_s=60)
    await shop.get()
    await shop.clock.advance(59)
    before = (await shop.get()).token
    await shop.clock.advance(1)

    assert (before, (await shop.get()).token) == ("token-1", "token-2")


async def test_without_a_cache_each_request_is_a_call_but_those_at_once() -> None:
    shop = Shop(longest_s=0, duration_s=1)
    for _ in range(2):
        waiting = [asyncio.create_task(shop.get()) for _ in range(3)]
        await shop.clock.advance(1)
        await asyncio.gather(*waiting)

    assert (shop.calls, len(shop.cache), shop.cache.fresh("a")) == (2, 0, None)


async def test_what_is_forgotten_is_fetched_anew_and_a_call_under_way_brings_nothing_back() -> None:
    shop = Shop(duration_s=1)
    old = asyncio.create_task(shop.get())
    await settle()
    under_way = shop.cache.clear()
    new = asyncio.create_task(shop.get())
    await shop.clock.advance(1)

    assert (under_way, (await old).token, (await new).token) == (0, "token-1", "token-2")
    assert (await shop.get()).token == "token-2"
    assert shop.cache.clear() == 1
    assert shop.cache.fresh("a") is None


async def test_a_forgotten_call_is_ended_with_the_cache() -> None:
    shop = Shop(duration_s=10)
    waiting = asyncio.create_task(shop.get())
    await settle()
    shop.cache.clear()
    await shop.cache.close()
    await settle()

    assert waiting.cancelled()
    assert shop.clock.next_wake_s() is None


async def test_its_uses_are_counted() -> None:
    shop = Shop(duration_s=1)
    waiting = [asyncio.create_task(shop.get()) for _ in range(3)]
    await shop.clock.advance(1)
    await asyncio.gather(*waiting, shop.get())
    await shop.clock.advance(HOUR_S / 2)
    shop.source.fail_next(TransientError("IMDS is away"))
    await shop.get()
    await shop.clock.advance(RETRY_S)
    await shop.get()
    await shop.clock.advance(1)

    assert {name.partition(":")[2]: number for name, number in shop.meter.counts.items()} == {
        "fetched": 1,
        "shared": 2,
        "hit": 3,
        "renewal_failed": 1,
        "renewed": 1,
    }

"""What every SecretReader must do.

Subclass the contract, name the subclass `Test...`, and give it the fixture `world`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import pytest

from podidentity_core.errors import NotFound, PermissionRefused, TransientError
from podidentity_core.model import Key
from podidentity_core.ports import SecretReader

SECRET = Key("default", "credential")
VALUE = b"the-value-of-the-secret"


class SecretWorld(Protocol):
    """The implementation, and the cluster behind it as tests set it. Namespaces `default` and `other` exist."""

    secrets: SecretReader

    async def put(self, key: Key, data: Mapping[str, bytes]) -> None:
        """Let a Secret exist, or hold just *data* from now on."""
        ...

    async def remove(self, key: Key) -> None:
        """Let a Secret vanish."""
        ...

    def forbid(self) -> None:
        """Let the next read be forbidden."""
        ...

    def break_down(self) -> None:
        """Answer no further read in a useful way."""
        ...


class SecretReaderContract:
    """Subclass it, and give it the fixture `world`."""

    @pytest.mark.parametrize(
        "data",
        [{"a": VALUE, "b": b"\x00\xff\n"}, {"empty": b""}, {}],
        ids=["any bytes", "an empty value", "no data"],
    )
    async def test_the_data_comes_decoded(self, world: SecretWorld, data: Mapping[str, bytes]) -> None:
        await world.put(SECRET, data)

        assert await world.secrets.read(SECRET) == data

    async def test_the_data_is_what_is_there_now(self, world: SecretWorld) -> None:
        await world.put(SECRET, {"old": b"1"})
        await world.secrets.read(SECRET)
        await world.put(SECRET, {"new": VALUE})

        assert await world.secrets.read(SECRET) == {"new": VALUE}

    async def test_namespaces_are_kept_apart(self, world: SecretWorld) -> None:
        await world.put(SECRET, {"a": b"1"})
        await world.put(Key("other", SECRET.name), {"a": b"2"})

        assert await world.secrets.read(SECRET) == {"a": b"1"}

    async def test_what_does_not_exist_any_more_is_not_found(self, world: SecretWorld) -> None:
        await world.put(SECRET, {"a": VALUE})
        await world.secrets.read(SECRET)
        await world.remove(SECRET)

        with pytest.raises(NotFound, match=f"{SECRET.name}"):
            await world.secrets.read(SECRET)

    @pytest.mark.parametrize(
        "key",
        [
            Key("default", "../../other/secrets/credential"),
            Key("default", "..%2f..%2fother/secrets/credential"),
            Key("default/../other", "credential"),
            Key("other/secrets/credential?", "x"),
            Key("default", "../secrets/credential"),
            Key("default", "credential?pretty=true"),
            Key("default", "credential#x"),
            Key("default", "credential\n"),
            Key("default", ".."),
            Key("default", ""),
            Key("", "credential"),
        ],
        ids=repr,
    )
    async def test_a_name_that_none_can_have_finds_no_other_secret(self, world: SecretWorld, key: Key) -> None:
        for namespace in ("default", "other"):
            await world.put(Key(namespace, "credential"), {"a": VALUE})

        with pytest.raises(NotFound):
            await world.secrets.read(key)

    async def test_a_missing_right_is_told(self, world: SecretWorld) -> None:
        await world.put(SECRET, {"a": VALUE})
        world.forbid()

        with pytest.raises(PermissionRefused) as caught:
            await world.secrets.read(SECRET)

        assert VALUE.decode() not in str(caught.value)

    async def test_a_server_that_does_not_work_is_a_passing_trouble(self, world: SecretWorld) -> None:
        await world.put(SECRET, {"a": VALUE})
        world.break_down()

        with pytest.raises(TransientError) as caught:
            await world.secrets.read(SECRET)

        assert VALUE.decode() not in str(caught.value)

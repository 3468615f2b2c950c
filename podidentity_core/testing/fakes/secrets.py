"""Secrets in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from podidentity_core.errors import NotFound
from podidentity_core.model import Key
from podidentity_core.ports import SecretReader


class FakeSecrets:
    """SecretReader in memory. *reads* has what was asked for."""

    def __init__(self) -> None:
        self.reads: list[Key] = []
        self._secrets: dict[Key, Mapping[str, bytes]] = {}
        self._failures: deque[Exception] = deque()

    def put(self, key: Key, data: Mapping[str, bytes]) -> None:
        """Let a Secret exist, or hold just *data* from now on."""
        self._secrets[key] = dict(data)

    def remove(self, key: Key) -> None:
        """Let a Secret vanish."""
        self._secrets.pop(key, None)

    def fail_next(self, error: Exception) -> None:
        """Let the next read raise *error*; further ones queue up."""
        self._failures.append(error)

    async def read(self, key: Key) -> Mapping[str, bytes]:
        """Return what the Secret holds now."""
        self.reads.append(key)
        if self._failures:
            raise self._failures.popleft()
        if key not in self._secrets:
            raise NotFound(f"Secret {key} does not exist")
        return dict(self._secrets[key])


if TYPE_CHECKING:
    _: type[SecretReader] = FakeSecrets

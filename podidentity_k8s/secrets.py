"""Reads Secrets, one at a time and as they are now: no list and no watch, so the role needs `get` alone.

Source: aad-pod-identity pkg/k8s/client.go:255 (GetSecret).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from podidentity_core.errors import NotFound, TransientError
from podidentity_core.model import Key
from podidentity_core.ports import SecretReader
from podidentity_k8s.api import KubeApi

_CALL_S = 5.0  # a pod waits for its token meanwhile
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


class KubeSecrets:
    """The SecretReader of a cluster."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api

    async def read(self, key: Key) -> Mapping[str, bytes]:
        """GET the Secret. A transient failure is repeated."""
        if not _NAMESPACE.fullmatch(key.namespace) or not _NAME.fullmatch(key.name):
            # Whoever wrote the name must not choose the path: `../x` would leave the namespace.
            raise NotFound(f"Secret {key}: no Secret can have this name")
        path = f"/api/v1/namespaces/{key.namespace}/secrets/{key.name}"
        data = _data(await self._api.get(path, timeout_s=_CALL_S))
        if data is None:
            raise TransientError(f"GET {path}: the answer is no Secret")
        return data


def _data(answer: bytes) -> Mapping[str, bytes] | None:
    """Return the decoded data. None for what is no Secret, instead of an error, which would quote it."""
    try:
        secret = json.loads(answer)
        if secret["kind"] != "Secret":
            return None
        return {name: base64.b64decode(text, validate=True) for name, text in (secret.get("data") or {}).items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


if TYPE_CHECKING:
    _: type[SecretReader] = KubeSecrets

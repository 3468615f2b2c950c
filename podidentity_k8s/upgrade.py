"""The mark that says that stored objects have the spelling of 1.6 and later.

Up to 1.5 fields could be written in any letter case, and the original rewrites all objects once. There is nothing left
to rewrite: the CRDs have a schema now, and the API server prunes other spellings before anybody can read them. But
older and newer versions look for the mark, so it is set.

Source: aad-pod-identity pkg/mic/mic.go:287.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from podidentity_core.errors import Conflict, NotFound
from podidentity_k8s.api import KubeApi

_log = logging.getLogger(__name__)

_ATTEMPTS = 3


async def mark_type_upgrade(api: KubeApi, *, namespace: str, config_map: str, key: str, version: str) -> None:
    """See to it that the ConfigMap exists, and that its *key* names a version: *version*, if it names none yet.

    Raises:
        TransientError: try again later. PermissionRefused: RBAC lacks get, create or update on configmaps.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return await _mark(api, namespace, config_map, key, version)
        except Conflict:  # somebody else writes the same map
            if attempt == _ATTEMPTS:
                raise
    return None


async def _mark(api: KubeApi, namespace: str, name: str, key: str, version: str) -> None:
    collection = f"/api/v1/namespaces/{namespace}/configmaps"
    try:
        raw = await api.get(f"{collection}/{name}")
    except NotFound:
        empty = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": namespace, "name": name}}
        raw = await api.post(collection, empty)
    found: dict[str, Any] = json.loads(raw)
    data = found.get("data") or {}
    if key in data:
        _log.info("stored objects were upgraded by version %s", data[key])
        return
    await api.put(f"{collection}/{name}", {**found, "data": {**data, key: version}})
    _log.info("marked stored objects as upgraded by version %s in ConfigMap %s/%s", version, namespace, name)

"""Whether a MIC of the original leads: it knows no Leases and holds a lock of its own, an annotation of an Endpoints.

During a roll-out from the original both kinds run. The original does not see our Lease, so we see to its lock.

Source: aad-pod-identity pkg/mic/mic.go:249, client-go tools/leaderelection/resourcelock/endpointslock.go.
"""

from __future__ import annotations

import logging

from pydantic import ValidationError

from podidentity_core.errors import NotFound, PermissionRefused
from podidentity_core.ports import Clock
from podidentity_k8s.api import KubeApi
from podidentity_k8s.wire import LeaderRecord, WireEndpoints

_log = logging.getLogger(__name__)

ANNOTATION = "control-plane.alpha.kubernetes.io/leader"

_LEASES_TO_WAIT = 2  # a standby of the original takes over within 1.55 lease durations; it shall come first
_LONG_DEAD_S = 3600.0  # no clocks differ by so much: such a record needs no watching to be known as dead


class OriginalLeader:
    """Watches the original's lock *namespace*/*name*."""

    def __init__(self, api: KubeApi, *, namespace: str, name: str, clock: Clock) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/endpoints/{name}"
        self._clock = clock
        self._seen = ""
        self._since_s = 0.0
        self._warned = False

    async def holder(self, *, timeout_s: float) -> str:
        """The identity that keeps renewing the lock; empty when nobody does. A record that is new to us counts.

        Raises:
            TransientError: when the lock cannot be read now.
        """
        text = await self._annotation(timeout_s)
        try:
            record = LeaderRecord.model_validate_json(text) if text else LeaderRecord()
        except ValidationError:
            record = LeaderRecord()
        if not record.holder:
            return ""
        now_s = self._clock.monotonic_s()
        if text != self._seen:
            self._since_s = float("-inf") if not self._seen and self._is_long_dead(record) else now_s
            self._seen = text
        return record.holder if now_s - self._since_s < _LEASES_TO_WAIT * record.duration_s else ""

    def _is_long_dead(self, record: LeaderRecord) -> bool:
        return record.renew_time is not None and self._clock.wall_s() - record.renew_time.timestamp() > _LONG_DEAD_S

    async def _annotation(self, timeout_s: float) -> str:
        try:
            raw = await self._api.get(self._path, timeout_s=timeout_s)
            return (WireEndpoints.model_validate_json(raw).metadata.annotations or {}).get(ANNOTATION, "")
        except (NotFound, ValidationError):
            return ""
        except PermissionRefused as error:
            if not self._warned:
                _log.warning(
                    "cannot see whether a MIC of aad-pod-identity 1.8 leads: %s; grant `get` on endpoints", error
                )
            self._warned = True
            return ""

"""What NMI says about each request for a token: one log line, which is also the audit record, and its metrics.

No token, no secret, and of a client ID only its ends. Fields and their order are the original's, then ours.
Source: aad-pod-identity pkg/nmi/server/server.go:239.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from apps.klog import one_line
from podidentity_core.model import Identity, Pod
from podidentity_core.ports import Meter
from podidentity_core.reasons import Explanation
from podidentity_core.token_request import TokenRequest, redact

CLIENT_GONE = 499
"""The status in log and metric when the client did not wait for the answer; nobody receives it."""

Write = Callable[[int, str], None]
"""Writes a line of the log: its level and its message."""


@dataclass(slots=True)
class Record:
    """One request: where it came from and what it was for, and how it ended."""

    method: str
    path: str
    remote: str
    status: int = CLIENT_GONE
    pod: Pod | None = None
    identity: Identity | None = None
    request: TokenRequest | None = None
    kept: bool = False
    why: Explanation | None = None
    told: str = ""
    """The end of the log line, once it has been made: a record may stand for the next request, too."""


def note(record: Record, took_s: float, meter: Meter, write: Write) -> None:
    """Log and count *record*."""
    request, pod = record.request, record.pod
    namespace = pod.namespace if pod else ""
    status = record.status
    meter.observe(
        "nmi_operations_duration_seconds",
        took_s,
        namespace=namespace,
        operation_type=record.path,
        resource=request.resource if request else "",
        status_code=str(status),
    )
    if record.why is not None:
        meter.count("nmi_refused_requests_count", namespace=namespace, reason=record.why.code)
    record.told = told = record.told or one_line(_told(record))
    write(logging.INFO if status == 200 else logging.ERROR, f"status ({status}) took {took_s * 1e9:.0f} ns for {told}")


PLACE = f"audit.py:{note.__code__.co_firstlineno}"
"""Where the lines come from, for `klog.direct`."""


def _told(record: Record) -> str:
    where = f"req.method={record.method} reg.path={record.path} req.remote={record.remote}"
    whose = _whose(record.pod) if record.pod else "pod=-"
    what = f"resource={_shown(record.request.resource)}" if record.request else "resource=-"
    if record.status == 200:
        end = f"{_by(record)} {what} token={'kept' if record.kept else 'fetched'}"
    elif record.why is None:
        end = f'{what} error="the client hung up"'
    else:
        end = f"{what} reason={record.why.code} error={json.dumps(str(record.why))}"
    return f"{where} {whose} {end}"


def _whose(pod: Pod) -> str:
    return f"pod={pod.key} uid={pod.uid or '-'} serviceaccount={pod.service_account or '-'}"


def _by(record: Record) -> str:
    if record.identity is not None:
        identity = record.identity
        return f"identity={identity.key} type={identity.kind.value} clientid={_redacted(identity.client_id)}"
    selector = record.request.selector if record.request else None
    return f"identity=the-node's selector={_shown(str(selector)) if selector else '-'}"


_redacted = lru_cache(maxsize=1024)(redact)
_PLAIN = re.compile(r"[!#-~]+")


@lru_cache(maxsize=1024)
def _shown(text: str) -> str:
    """*text* as one word: a pod chose it, and must not make it look like further fields."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text)

"""How Entra ID refuses a token request."""

from __future__ import annotations

import time
import uuid
from typing import Any


class Refused(Exception):
    """A token request that Entra refuses: *error* is OAuth's word for it, *code* Entra's number."""

    def __init__(self, status: int, error: str, code: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.error = error
        self.code = code


def error_body(refused: Refused) -> dict[str, Any]:
    """Return the body of the answer."""
    trace, correlation = str(uuid.uuid4()), str(uuid.uuid4())
    stamp = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
    told = f"AADSTS{refused.code}: {refused} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {stamp}"
    return {
        "error": refused.error,
        "error_description": told,
        "error_codes": [refused.code],
        "timestamp": stamp,
        "trace_id": trace,
        "correlation_id": correlation,
        "error_uri": f"https://login.microsoftonline.com/error?code={refused.code}",
    }

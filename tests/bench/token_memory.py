"""The token cache with a source that always answers: `python -m tests.bench.token_memory NUMBER`.

Prints how many tokens it keeps after NUMBER different ones, and the process's memory (PSS) in MiB before and after.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from functools import partial

from apps.clock import SystemClock
from apps.metrics import PrometheusMeter
from podidentity_core.ports import AccessToken
from podidentity_core.services.token_cache import TokenCache
from tests.bench.processes import pss_mb

_LENGTH = 1500


async def _token(number: int) -> AccessToken:
    resource = f"https://{number}.vault.example/"
    fields = {"client_id": "5a4db0c5-0000-4000-8000-000000000001", "resource": resource, "token_type": "Bearer"}
    return AccessToken(f"{number:0{_LENGTH}}", time.time() + 86_400, tuple(fields.items()))


async def _fill(number: int) -> None:
    cache = TokenCache(SystemClock(), PrometheusMeter())
    before_mb = pss_mb(os.getpid())
    for one in range(number):
        await cache.get(("identity", one), partial(_token, one))
    print(len(cache), before_mb, pss_mb(os.getpid()), flush=True)


if __name__ == "__main__":
    asyncio.run(_fill(int(sys.argv[1])))

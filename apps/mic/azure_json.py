"""A changed azure.json is taken up while MIC works: a renewed secret must not need a restart."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from podidentity_core.errors import ConfigurationError
from podidentity_core.ports import Clock

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""A look is one `stat`, which sees a file that was renamed into place as well; notifications do not."""


async def follow_file(
    path: str, fingerprint: Callable[[str], object], take_up: Callable[[], Awaitable[None]], clock: Clock
) -> None:
    """Look at *path* for ever, and *take_up* what it says now. A file that cannot be used changes nothing.

    Source: aad-pod-identity pkg/filewatcher, pkg/mic/mic.go:166, which took a half-written file for a configuration.
    """
    known = fingerprint(path)
    while True:
        await clock.sleep(LOOK_S)
        now = fingerprint(path)
        if now is None or now == known:
            continue
        known = now
        log.info("detected file modification: %s", path)
        try:
            await take_up()
        except ConfigurationError as error:
            log.error("%s; the former configuration stays in use", error)

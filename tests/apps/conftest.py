"""What the tests of the programs share."""

import socket
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.apps.stage import Stage, stage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Stage]:
    """A sandbox with MIC and NMI at work, one for all tests of a module: each makes its own identities and pods."""
    async with stage() as started:
        mic = await started.mic()
        await started.nmi()
        await mic.line("pod cache synchronized")
        await started.first_work()
        yield started


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]

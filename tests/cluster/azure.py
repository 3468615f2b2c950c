"""The Azure of this tier: the sandbox's ARM and Entra ID on the node, its IMDS at the metadata address itself.

It runs on an event loop in a thread of its own, so that tests may block while MIC and NMI talk to it.
"""

import asyncio
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from apps.sandbox.options import NodeSpec, identity_id
from apps.sandbox.sandbox import Sandbox, SandboxOptions
from apps.sandbox.serving import Listeners
from tests.cluster.network import METADATA_ADDRESS

T = TypeVar("T")

START_S = 20
METADATA_PORT = 80


class AzureSide:
    """A running Azure. *sandbox* is for reading; change it through `do`."""

    def __init__(self, sandbox: Sandbox, loop: asyncio.AbstractEventLoop) -> None:
        self.sandbox = sandbox
        self._loop = loop
        self._metadata = Listeners()

    @property
    def node(self) -> NodeSpec:
        """Return the node on which the tests run: its instance metadata is what pods see."""
        return self.sandbox.options.nodes[0]

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that point a program at this Azure, and at no cluster."""
        variables = self.sandbox.client_environment
        return {name: variables[name] for name in ("AZURE_ENVIRONMENT_FILEPATH", "SSL_CERT_FILE")}

    def do(self, action: Callable[[Sandbox], T]) -> T:
        """Let *action* change the sandbox, on its event loop, and return what it returns."""

        async def act() -> T:
            return action(self.sandbox)

        return self.wait_for(act())

    def add_identity(self, name: str) -> str:
        """Create a user-assigned identity and return its resource ID."""
        return self.do(lambda sandbox: sandbox.azure.add_identity(identity_id(name)).resource_id)

    def client_id(self, resource_id: str) -> str:
        """Return the client ID of an identity."""
        return self.sandbox.azure.identities[resource_id.lower()].principal.client_id

    def identities_on_host(self) -> frozenset[str]:
        """Return the resource IDs, in lower case, that ARM shows on the node's host."""
        host = self.sandbox.azure.host(self.node.host_id)
        return frozenset(held.lower() for held in host.identity.assigned)

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* on the sandbox's event loop and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(START_S)

    async def start(self) -> None:
        """Start all servers, the metadata address included."""
        await self.sandbox.__aenter__()
        name = self.node.name
        application = self.sandbox.faults.guard(f"imds/{name}", self.sandbox.imds[name])
        self._metadata.serve(self._metadata.bind(METADATA_ADDRESS, port=METADATA_PORT), application)
        await self._metadata.start(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # for none of its listeners

    async def stop(self) -> None:
        """Stop all servers."""
        await self._metadata.stop()
        await self.sandbox.__aexit__(None, None, None)


@contextmanager
def running_azure(options: SandboxOptions) -> Iterator[AzureSide]:
    """Start an Azure with *options*, and stop it at the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="azure")
    thread.start()
    side = AzureSide(Sandbox(options), loop)
    try:
        side.wait_for(side.start())
        try:
            yield side
        finally:
            side.wait_for(side.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

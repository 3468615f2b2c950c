"""The fake and the real reader of Secrets keep the same contract; the real one over a socket, against the sandbox."""

from __future__ import annotations

import base64
import random
from collections.abc import AsyncIterator, Mapping

import pytest

from apps.clock import SystemClock
from apps.sandbox.faults import Fault
from apps.sandbox.resources import SECRETS
from apps.sandbox.sandbox import Sandbox, SandboxOptions
from podidentity_core.errors import PermissionRefused, TransientError
from podidentity_core.model import Key
from podidentity_core.testing.contracts import SecretReaderContract
from podidentity_core.testing.fakes import FakeSecrets
from podidentity_k8s.api import Connection, KubeApi
from podidentity_k8s.config import load_credentials
from podidentity_k8s.secrets import KubeSecrets


class FakeSecretWorld:
    def __init__(self) -> None:
        self.secrets = FakeSecrets()

    async def put(self, key: Key, data: Mapping[str, bytes]) -> None:
        self.secrets.put(key, data)

    async def remove(self, key: Key) -> None:
        self.secrets.remove(key)

    def forbid(self) -> None:
        self.secrets.fail_next(PermissionRefused("forbidden"))

    def break_down(self) -> None:
        self.secrets.fail_next(TransientError("broken"))


class TestFakeSecrets(SecretReaderContract):
    @pytest.fixture
    def world(self) -> FakeSecretWorld:
        return FakeSecretWorld()


class SandboxSecretWorld:
    """Writes straight into the sandbox's store, reads through its API server."""

    def __init__(self, sandbox: Sandbox, api: KubeApi) -> None:
        self.secrets = KubeSecrets(api)
        self._sandbox = sandbox
        sandbox.cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}})

    async def put(self, key: Key, data: Mapping[str, bytes]) -> None:
        kept = [body["metadata"] for body in self._sandbox.cluster.objects("secrets")]
        if any(key == Key(meta["namespace"], meta["name"]) for meta in kept):
            await self.remove(key)
        encoded = {name: base64.b64encode(value).decode() for name, value in data.items()}
        place = {"namespace": key.namespace, "name": key.name}
        self._sandbox.cluster.create({"apiVersion": "v1", "kind": "Secret", "metadata": place, "data": encoded})

    async def remove(self, key: Key) -> None:
        self._sandbox.cluster.delete(SECRETS, key.namespace, key.name, 0)

    def forbid(self) -> None:
        self._sandbox.faults.add(Fault("kube", match="/secrets/", status=403))

    def break_down(self) -> None:
        self._sandbox.faults.add(Fault("kube", match="/secrets/", status=503, times=None))


class TestKubeSecrets(SecretReaderContract):
    @pytest.fixture
    async def world(self) -> AsyncIterator[SandboxSecretWorld]:
        async with Sandbox(SandboxOptions(nodes=(), run_pods=False)) as sandbox:
            credentials = await load_credentials(str(sandbox.kubeconfig))
            async with Connection(credentials, user_agent="test") as connection:
                yield SandboxSecretWorld(sandbox, KubeApi(connection, clock=SystemClock(), random=random.random))

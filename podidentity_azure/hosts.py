"""The port `HostIdentities` on Azure Resource Manager: the user-assigned identities of VMs and scale sets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from podidentity_azure.cloud import AzureConfig
from podidentity_azure.credentials import open_credential
from podidentity_azure.errors import core_error
from podidentity_azure.identity_block import Block, attached_identities, identity_patches, unsettled
from podidentity_azure.operations import Answer, Follower, UsualTime, in_progress, state_of
from podidentity_azure.quotas import Quotas
from podidentity_azure.tls import ca_bundle, tls_context
from podidentity_core.errors import Conflict, RefusedError
from podidentity_core.ports import Clock, HostIdentities, HostState, Meter
from podidentity_core.resource_ids import Host, HostKind, IdentityResource

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

    from podidentity_azure.compute import Compute

_METRIC_PREFIX = {HostKind.VM: "vm", HostKind.SCALE_SET: "vmss"}


class AzureHosts:
    """Reads and changes hosts through azure-mgmt-compute. One for the whole process; close it after use.

    *agent* is how the program names itself to Azure. Nothing is opened before the first call. A call that fails is not
    repeated here: the caller decides again first. A call that Azure's budgets do not allow soon is not made, and raises
    `Throttled`.

    Raises:
        ConfigurationError: when the certificates that *environ* names cannot be used.
    """

    def __init__(
        self, config: AzureConfig, *, clock: Clock, meter: Meter, agent: str, environ: Mapping[str, str]
    ) -> None:
        self._config = config
        self._clock = clock
        self._meter = meter
        self._agent = agent
        self._environ = environ
        self._quotas = Quotas(clock, meter)
        self._tls = tls_context(ca_bundle(environ))
        self._session: _Session | None = None

    async def attached(self, host: Host) -> HostState:
        """Read what the host carries, whoever put it there: identities that can be used.

        While one is being put there, by an earlier call that was cut off or by somebody else, this waits for it.
        """
        async with self._opened() as hosts:
            return await hosts.attached(host)

    async def change(
        self, host: Host, *, add: Collection[IdentityResource], remove: Collection[IdentityResource]
    ) -> HostState:
        """Add and remove, and return once the identities can be used: what the host carries then.

        More than 150 differences take several writes. When one fails, those before it stay, and repeating the call
        does what is left.
        """
        async with self._opened() as hosts:
            return await hosts.change(host, add=add, remove=remove)

    async def load(self) -> None:
        """Load what the first call needs: half a second of work, during which the loop goes on to renew the lease."""
        await asyncio.to_thread(_import_libraries)

    async def reconfigure(self, config: AzureConfig) -> None:
        """Use *config* from the next call on. Calls that are under way end as they began."""
        self._config = config
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections, those of calls under way when these end."""
        session, self._session = self._session, None
        if session is not None and not session.calls:
            await session.aclose()

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[_ComputeHosts]:
        if self._session is None:
            await self.load()
        session = self._session = self._session or self._open()
        session.calls += 1
        try:
            yield session.hosts
        finally:
            session.calls -= 1
            if not session.calls and session is not self._session:
                await session.aclose()

    def _open(self) -> _Session:
        from podidentity_azure.compute import Compute

        credential = open_credential(self._config, environ=self._environ, tls=self._tls)
        compute = Compute(
            self._config.cloud, credential, self._tls, self._agent, quotas=self._quotas, meter=self._meter
        )
        return _Session(credential, compute, _ComputeHosts(compute, self._clock, self._meter))


def _import_libraries() -> None:
    for name in ("azure.identity.aio", "podidentity_azure.compute"):
        import_module(name)


@dataclass(slots=True)
class _Session:
    """The connections that belong to one configuration, and how many calls use them."""

    credential: AsyncTokenCredential
    compute: Compute
    hosts: _ComputeHosts
    calls: int = 0

    async def aclose(self) -> None:
        await self.compute.aclose()
        await self.credential.close()


class _ComputeHosts:
    """The port itself, on connections that others open and close."""

    def __init__(self, compute: Compute, clock: Clock, meter: Meter) -> None:
        self._compute = compute
        self._clock = clock
        self._meter = meter
        self._usual = {kind: UsualTime() for kind in HostKind}

    async def attached(self, host: Host) -> HostState:
        now = await self._read(host)
        if unsettled(_block(now), attached_identities(_block(now))):
            now = await self._settled(host, now)
        return _state(now)

    async def change(
        self, host: Host, *, add: Collection[IdentityResource], remove: Collection[IdentityResource]
    ) -> HostState:
        now = await self._read(host)
        bodies = _patches(now, add, remove)
        if not bodies and unsettled(_block(now), add):
            now = await self._settled(host, now)
            bodies = _patches(now, add, remove)
        if bodies and _is_deleting(now):
            raise RefusedError(f"patch {host}: it is being deleted, and takes no identities any more")
        for body in bodies:
            now = await self._write(host, body, now, {*add, *remove})
        return _state(now)

    async def _read(self, host: Host) -> Answer:
        with self._measured(host, "get"):
            return await self._compute.read(host)

    async def _write(self, host: Host, body: object, seen: Answer, named: Collection[IdentityResource]) -> Answer:
        with self._measured(host, "update"):
            started = await self._compute.patch(host, body, etag=seen.body.get("etag"), sent=named)
            return await self._finish(host, started, named)

    async def _finish(self, host: Host, started: Answer, named: Collection[IdentityResource]) -> Answer:
        """Wait until the write that ARM answered with *started* has ended, and return the host as it is then.

        That is what ARM said at the start: a newer write of somebody else would have ended the operation as
        pre-empted. So it need not be read again. Where the host itself was followed, which does not tell of
        pre-emption, its last answer is compared and returned.
        """
        usual, begun_s = self._usual[host.kind], self._clock.monotonic_s()
        fault, last = await self._follower(host, usual.first_poll_s()).follow(started)
        if fault is not None:
            raise core_error(fault, f"patch {host}", named)
        usual.note(self._clock.monotonic_s() - begun_s)
        if last is None:
            return started
        if attached_identities(_block(started)) - attached_identities(_block(last)):
            raise Conflict(f"patch {host}: somebody else replaced its identities in the meantime")
        return last

    async def _settled(self, host: Host, now: Answer) -> Answer:
        """Wait until nobody's write to the host is under way, and return the host as it is then."""
        if not in_progress(now.body) or _is_deleting(now):
            return now
        fault, last = await self._follower(host).follow(now)
        if fault is not None and fault.status is not None:
            raise core_error(fault, f"get {host}")
        return last or now  # that somebody's write failed is in the host's state

    def _follower(self, host: Host, first_poll_s: float = 0.0) -> Follower:
        return Follower(
            lambda url: self._compute.ask(host, url),
            lambda url: self._compute.left(host, url),
            self._clock,
            self._compute.url(host),
            first_poll_s=first_poll_s,
        )

    @contextmanager
    def _measured(self, host: Host, verb: str) -> Iterator[None]:
        """Source of names and of what counts: aad-pod-identity pkg/metrics/metrics.go."""
        operation = f"{_METRIC_PREFIX[host.kind]}_{verb}"
        begun_s = self._clock.monotonic_s()
        try:
            yield
        except Exception:
            self._meter.count("cloud_provider_operations_errors_count", operation_type=operation)
            raise
        seconds = self._clock.monotonic_s() - begun_s
        self._meter.observe("cloud_provider_operations_duration_seconds", seconds, operation_type=operation)


def _block(answer: Answer) -> Block:
    block: Block = answer.body.get("identity")
    return block


def _is_deleting(answer: Answer) -> bool:
    return state_of(answer.body) == "deleting"


def _has_failed(answer: Answer) -> bool:
    return state_of(answer.body) in ("failed", "canceled")


def _patches(now: Answer, add: Collection[IdentityResource], remove: Collection[IdentityResource]) -> Sequence[object]:
    return identity_patches(_block(now), add, remove, renew=_has_failed(now))


def _state(answer: Answer) -> HostState:
    attached = attached_identities(_block(answer), only_settled=_has_failed(answer))
    return HostState(attached, deleting=_is_deleting(answer))


if TYPE_CHECKING:
    _hosts: type[HostIdentities] = AzureHosts
    _compute_hosts: type[HostIdentities] = _ComputeHosts

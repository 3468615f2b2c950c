"""The one place that knows every class of NMI."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from apps import klog
from apps.clock import SystemClock
from apps.metrics import PrometheusMeter
from apps.nmi import audit
from apps.nmi.api import ApiPorts, ApiSettings, create_app
from apps.nmi.flags import NmiConfig
from apps.nmi.netfilter.firewall import Iptables
from apps.nmi.netfilter.interceptor import Interception, Interceptor
from apps.nmi.netfilter.rules import Redirect
from apps.nmi.passthrough import ImdsPassthrough
from apps.serving import Application
from apps.version import installed
from podidentity_azure.authority import PUBLIC_AUTHORITY
from podidentity_azure.entra import EntraRules, EntraTokens
from podidentity_azure.imds import ImdsTokens
from podidentity_core.model import IdentityKind
from podidentity_core.ports import Clock
from podidentity_core.selection import Patience
from podidentity_core.services.tokens import TokenPorts, TokenService, TokenSettings
from podidentity_k8s.api import Connection, KubeApi
from podidentity_k8s.cluster import KubeCluster
from podidentity_k8s.config import load_credentials
from podidentity_k8s.listing import KubePods
from podidentity_k8s.resources import Resource, managed_nmi_resources, nmi_resources
from podidentity_k8s.secrets import KubeSecrets


@dataclass(frozen=True, slots=True)
class Nmi:
    """Everything connected, nothing started."""

    app: Application
    service: TokenService
    meter: PrometheusMeter
    clock: Clock


@asynccontextmanager
async def connected(config: NmiConfig) -> AsyncIterator[Nmi]:
    """Connect everything NMI needs, and close it at the end. No request is made yet.

    Raises:
        ConfigurationError: a setting cannot be used.
    """
    clock, meter = SystemClock(), PrometheusMeter()
    agent = installed().user_agent("NMI", config.custom_user_agent)
    endpoint = _endpoint(config)
    credentials = await load_credentials(config.kubeconfig, setting="KUBECONFIG")
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(Connection(credentials, user_agent=agent))
        api = KubeApi(connection, clock=clock, random=random.random)
        imds = ImdsTokens(endpoint, clock=clock, meter=meter, agent=agent)
        stack.push_async_callback(imds.aclose)
        entra = EntraTokens(
            KubeSecrets(api), clock=clock, meter=meter, agent=agent, environ=os.environ, rules=_entra_rules(config)
        )
        stack.push_async_callback(entra.aclose)
        passthrough = ImdsPassthrough(endpoint)
        stack.push_async_callback(passthrough.aclose)
        ports = TokenPorts(
            cluster=KubeCluster(api, _resources(config), clock=clock, random=random.random),
            pods=KubePods(api, config.node),
            sources={
                IdentityKind.USER_ASSIGNED: imds,
                IdentityKind.SERVICE_PRINCIPAL: entra,
                IdentityKind.CERTIFICATE: entra,
            },
            node_tokens=imds,
            clock=clock,
            meter=meter,
        )
        service = TokenService(ports, _token_settings(config))
        api_ports = ApiPorts(clock, meter, klog.direct(audit.PLACE))
        app = create_app(service, passthrough, _api_settings(config), api_ports)
        yield Nmi(app, service, meter, clock)


def interceptor(config: NmiConfig, port: int, nmi: Nmi) -> Interceptor:
    """Build what brings pods' requests to *port*, on which NMI listens already."""
    redirect = Redirect(config.metadata_address, config.metadata_port, config.listen_address, port)
    interception = Interception(redirect, config.rule_interval_s, config.delete_conntrack)
    return Interceptor(interception, Iptables(redirect.family), nmi.clock, random.random, nmi.service.addresses)


def _endpoint(config: NmiConfig) -> str:
    host = f"[{config.metadata_address}]" if ":" in config.metadata_address else config.metadata_address
    return f"http://{host}:{config.metadata_port}"


def _resources(config: NmiConfig) -> Sequence[Resource]:
    if config.managed:
        return managed_nmi_resources(config.node)
    return nmi_resources(config.node, scale_features=config.own_node_only)


def _entra_rules(config: NmiConfig) -> EntraRules:
    return EntraRules(
        authority=config.authority or PUBLIC_AUTHORITY,
        allow_any_endpoint=config.allow_ad_endpoints,
        allow_foreign_secrets=config.allow_foreign_secrets,
    )


def _token_settings(config: NmiConfig) -> TokenSettings:
    return TokenSettings(
        node=config.node,
        namespaced=config.namespaced,
        mic_namespace=config.mic_namespace,
        patience=Patience(absent_s=config.creation_wait_s, created_s=config.assignment_wait_s),
        longest_kept_s=config.longest_kept_s,
    )


def _api_settings(config: NmiConfig) -> ApiSettings:
    return ApiSettings(
        metadata_header_required=config.metadata_header_required,
        block_instance_metadata=config.block_instance_metadata,
        retry_after_header=config.retry_after_header,
        host_token=config.host_token,
    )

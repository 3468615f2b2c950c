"""The subscriptions that `az login` lists: the sandbox's ARM, where pods can reach it.

The sandbox's own address is the node's loopback; and it has no list of subscriptions, which nothing else asks for.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from apps.sandbox.identity_rules import ArmError
from apps.sandbox.options import TENANT
from apps.sandbox.serving import Application, Listeners, Receive, Scope, Send, answer, header
from tests.cluster.azure import AzureSide
from tests.cluster.certificates import Certificates
from tests.cluster.network import NODE_ADDRESS

SUBSCRIPTION = {
    "id": "/subscriptions/00000000-0000-0000-0000-00000000a01d",
    "subscriptionId": "00000000-0000-0000-0000-00000000a01d",
    "tenantId": TENANT,
    "displayName": "pods",
    "state": "Enabled",
}


@contextmanager
def arm_for_pods(azure: AzureSide, certificates: Certificates) -> Iterator[str]:
    """Serve the list to pods, to callers with a valid token only, and give its URL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server.certificate, certificates.server.key)
    listeners = Listeners()
    address = listeners.bind(NODE_ADDRESS, tls=True)
    listeners.serve(address, _subscriptions(azure))
    azure.wait_for(listeners.start(context))
    try:
        yield f"https://{address[0]}:{address[1]}"
    finally:
        azure.wait_for(listeners.stop())


def _subscriptions(azure: AzureSide) -> Application:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            azure.sandbox.arm._caller(header(scope, "authorization"))
        except ArmError as refused:
            await answer(send, refused.status, refused.body, refused.headers)
        else:
            await answer(send, 200, {"value": [SUBSCRIPTION]})

    return application

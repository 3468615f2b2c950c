"""The tutorial's demo pod: an application that knows the metadata address and nothing else.

It prints, as its users' applications would do it through azure-identity: a token of the pod's default identity, one by
client ID, the instance metadata, and the list of virtual machines fetched with the token. Tokens themselves are never
printed; what they say is.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Never

import httpx
import jwt
from azure.core.exceptions import AzureError
from azure.core.pipeline.transport import RequestsTransport
from azure.identity import ManagedIdentityCredential
from requests import Session
from requests.adapters import HTTPAdapter

METADATA = "http://169.254.169.254"
RESOURCE_MANAGER = "https://management.azure.com"


def main(argv: Sequence[str] | None = None) -> Never:
    """Run all steps again and again until SIGTERM."""
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # also in the middle of a wait for a token
    while True:
        _run_all(options)
        time.sleep(options.interval_s)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--subscription-id", required=True, help="whose virtual machines to list")
    parser.add_argument("--resource-group", required=True, help="the group whose virtual machines to list")
    parser.add_argument("--identity-client-id", required=True, help="the identity to ask for by client ID")
    parser.add_argument("--interval-s", type=float, default=60.0, help="seconds between two runs")
    parser.add_argument(
        "--resource-manager", default=os.environ.get("RESOURCE_MANAGER", RESOURCE_MANAGER), help="its endpoint"
    )
    return parser


def _run_all(options: argparse.Namespace) -> None:
    steps: Sequence[tuple[str, Callable[[], str]]] = (
        ("token of the pod's default identity", lambda: _token(options, None)),
        ("token by client ID", lambda: _token(options, options.identity_client_id)),
        ("instance metadata", _instance),
        ("virtual machines", lambda: _virtual_machines(options)),
    )
    for name, step in steps:
        began_s = time.monotonic()
        try:
            result = step()
        except (AzureError, httpx.HTTPError) as error:
            result = f"FAILED: {str(error).partition(chr(10))[0]}"
        print(f"{name}: {result} [{time.monotonic() - began_s:.2f} s]", flush=True)


def _token(options: argparse.Namespace, client_id: str | None) -> str:
    token = _credential(client_id).get_token(f"{options.resource_manager}/.default")
    claims = jwt.decode(token.token, options={"verify_signature": False})
    until = datetime.fromtimestamp(token.expires_on, UTC)
    return f"client ID {claims['appid']}, for {claims['aud']}, until {until:%Y-%m-%d %H:%M:%S} UTC"


def _virtual_machines(options: argparse.Namespace) -> str:
    token = _credential(options.identity_client_id).get_token(f"{options.resource_manager}/.default")
    url = (
        f"{options.resource_manager}/subscriptions/{options.subscription_id}/resourceGroups/{options.resource_group}"
        "/providers/Microsoft.Compute/virtualMachines"
    )
    with httpx.Client(timeout=30) as client:
        answer = client.get(
            url, params={"api-version": "2024-03-01"}, headers={"Authorization": f"Bearer {token.token}"}
        )
    answer.raise_for_status()
    names = [machine["name"] for machine in answer.json()["value"]]
    return f"{len(names)} in {options.resource_group}: {', '.join(names) or 'none'}"


def _instance() -> str:
    metadata = os.environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST", METADATA)
    transport = httpx.HTTPTransport(local_address=os.environ.get("POD_IP") or None)
    with httpx.Client(transport=transport, timeout=10) as client:
        answer = client.get(
            f"{metadata}/metadata/instance", params={"api-version": "2021-02-01"}, headers={"Metadata": "true"}
        )
    answer.raise_for_status()
    compute = answer.json()["compute"]
    return f"{compute['name']} in {compute['resourceGroupName']}, {compute['location']}"


def _credential(client_id: str | None) -> ManagedIdentityCredential:
    """The credential that any application uses; each a new one, so that each token is really asked for."""
    if address := os.environ.get("POD_IP"):
        return ManagedIdentityCredential(
            client_id=client_id, transport=RequestsTransport(session=_session_from(address))
        )
    return ManagedIdentityCredential(client_id=client_id)


class _FromAddress(HTTPAdapter):
    """On the sandbox all pods share one network, so each says which address is its own; a real pod has no other."""

    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *args: object, **kwargs: object) -> None:
        """Connect from the pod's address."""
        super().init_poolmanager(*args, **kwargs, source_address=(self._address, 0))  # type: ignore[arg-type]


def _session_from(address: str) -> Session:
    session = Session()
    session.mount("http://", _FromAddress(address))
    return session


if __name__ == "__main__":
    main()

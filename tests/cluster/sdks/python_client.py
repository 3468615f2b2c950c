"""A pod's program in Python, with azure-identity as the project pins it: asks for one token and prints what it got.

    python_client [--aio] managed|once|default [client-id|resource-id|object-id VALUE]

`once` is `managed` without the library's own retries. Prints one JSON line: `seconds` that the library took, and
either the token's `claims` or the `error`, which is the text of the library's exception. The token itself is never
printed.
"""

import argparse
import asyncio
import json
import sys
import time

import azure.identity
import azure.identity.aio
import jwt
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError

SCOPE = "https://management.azure.com/.default"


def main() -> None:
    """Ask once, with the settings that the library comes with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--aio", action="store_true")
    parser.add_argument("credential", choices=("managed", "once", "default"))
    parser.add_argument("selector", nargs="*")
    given = parser.parse_args()
    if given.credential == "default":
        name, arguments = "DefaultAzureCredential", _default_arguments(given.selector)
    else:
        name, arguments = "ManagedIdentityCredential", _managed_arguments(given.selector)
    if given.credential == "once":
        arguments["retry_total"] = 0
    began_s = time.monotonic()
    answer: dict[str, object] = {}
    try:
        token = asyncio.run(_ask_aio(name, arguments)) if given.aio else _ask(name, arguments)
        answer["claims"] = jwt.decode(token.token, options={"verify_signature": False})
    except ClientAuthenticationError as error:
        answer["error"] = str(error)
    answer["seconds"] = time.monotonic() - began_s
    json.dump(answer, sys.stdout)


def _default_arguments(selector: list[str]) -> dict[str, object]:
    return {"managed_identity_client_id": selector[1]} if selector else {}


def _managed_arguments(selector: list[str]) -> dict[str, object]:
    """Name the identity as the documentation of the library says."""
    match selector:
        case []:
            return {}
        case ["client-id", value]:
            return {"client_id": value}
        case [kind, value]:
            return {"identity_config": {kind.replace("-", "_"): value}}
    raise SystemExit(f"not a selector: {selector}")


def _ask(name: str, arguments: dict[str, object]) -> AccessToken:
    with getattr(azure.identity, name)(**arguments) as credential:
        token: AccessToken = credential.get_token(SCOPE)
        return token


async def _ask_aio(name: str, arguments: dict[str, object]) -> AccessToken:
    async with getattr(azure.identity.aio, name)(**arguments) as credential:
        token: AccessToken = await credential.get_token(SCOPE)
        return token


if __name__ == "__main__":
    main()

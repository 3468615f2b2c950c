"""A pod's program: asks for a token through azure-identity, as applications do, and prints what it got.

One JSON line: `asked_at_s` and `answered_at_s` on the machine's monotonic clock (the sandbox's operations have
the same), and either the token's `claims` or the `error`. The token itself is never printed.
"""

import argparse
import json
import time

import jwt
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import CredentialUnavailableError, ManagedIdentityCredential


def main() -> None:
    """Ask once; the library's own retries, half a minute of them, are part of it unless told otherwise."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--client-id")
    parser.add_argument("--retries", type=int, default=5)
    parser.add_argument("--scope", default="https://management.azure.com/.default")
    given = parser.parse_args()
    answer: dict[str, object] = {"asked_at_s": time.monotonic()}
    with ManagedIdentityCredential(client_id=given.client_id, retry_total=given.retries) as credential:
        try:
            token = credential.get_token(given.scope).token
            answer["claims"] = jwt.decode(token, options={"verify_signature": False})
        except (CredentialUnavailableError, ClientAuthenticationError) as error:
            answer["error"] = str(error)
    print(json.dumps({**answer, "answered_at_s": time.monotonic()}), flush=True)


if __name__ == "__main__":
    main()

"""Applications with a certificate at Entra ID: what proves the key, and what does not."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import jwt
import pytest
from azure.identity import CertificateCredential
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from apps.sandbox.assertions import JWT_BEARER, Trusted
from apps.sandbox.options import TENANT
from apps.sandbox.sandbox import Sandbox
from tests.azure.certificates import certificate

CLIENT = "0c0c0c0c-0000-4000-8000-000000000002"
SCOPE = "https://vault.azure.net/.default"
KEY, OTHER_KEY, ISSUER_KEY, ROOT_KEY = (rsa.generate_private_key(65537, 2048) for _ in range(4))
ROOT = certificate("root", ROOT_KEY)
ISSUER = certificate("issuer", ISSUER_KEY, "root", ROOT_KEY)
LEAF = certificate("app", KEY, "issuer", ISSUER_KEY)


@dataclass
class Application:
    """An application at Entra; *url* is its tenant's address."""

    sandbox: Sandbox
    azure: httpx.AsyncClient
    url: str

    async def prove(self, text: str, **form: str) -> httpx.Response:
        """Ask for a token with the assertion *text*."""
        proof = {"client_assertion_type": JWT_BEARER, "client_assertion": text}
        asked = {"grant_type": "client_credentials", "client_id": CLIENT, "scope": SCOPE, **proof, **form}
        return await self.azure.post(f"{self.url}/oauth2/v2.0/token", data=asked)

    def assertion(
        self,
        *,
        key: Any = KEY,
        algorithm: str = "RS256",
        header: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """An assertion as it should be, but for what is given; a claim that is None is left out."""
        now = int(time.time())
        good = {"aud": f"{self.url}/oauth2/v2.0/token", "iss": CLIENT, "sub": CLIENT, "nbf": now, "exp": now + 600}
        given = {name: value for name, value in {**good, **claims}.items() if value is not None}
        return jwt.encode(given, key, algorithm=algorithm, headers=dict(header or {"x5t": thumbprint(LEAF)}))


def thumbprint(of: x509.Certificate, algorithm: str = "sha1") -> str:
    digest = hashlib.new(algorithm, of.public_bytes(Encoding.DER)).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def x5c(*chain: x509.Certificate) -> dict[str, Any]:
    """The header of a chain, the application's own certificate first."""
    encoded = [base64.b64encode(one.public_bytes(Encoding.DER)).decode() for one in chain]
    return {"x5t": thumbprint(chain[0]), "x5c": encoded}


@pytest.fixture
def application(sandbox: Sandbox, azure: httpx.AsyncClient) -> Application:
    """It is known by its certificate."""
    sandbox.entra.register(TENANT, CLIENT, trusted=Trusted(certificates=(LEAF,)))
    return Application(sandbox, azure, f"{sandbox.entra_url}/{TENANT}")


@pytest.mark.parametrize(
    ("algorithm", "header"),
    [
        ("RS256", {"x5t": thumbprint(LEAF)}),
        ("RS256", {"x5t": f"{thumbprint(LEAF)}="}),
        ("PS256", {"x5t#S256": thumbprint(LEAF, "sha256")}),
    ],
    ids=["as NMI", "with padding, as the original", "as documented now"],
)
async def test_the_key_of_a_registered_certificate_is_a_proof(
    application: Application, algorithm: str, header: Mapping[str, str]
) -> None:
    answer = await application.prove(application.assertion(algorithm=algorithm, header=header))

    claims = jwt.decode(answer.json()["access_token"], options={"verify_signature": False})
    assert (claims["appid"], claims["tid"]) == (CLIENT, TENANT)


@pytest.mark.parametrize("endpoint", ["oauth2/token", "oauth2/token?api-version=1.0", "oauth2/v2.0/token"])
async def test_the_audience_is_a_token_endpoint_of_the_tenant(application: Application, endpoint: str) -> None:
    assert (await application.prove(application.assertion(aud=f"{application.url}/{endpoint}"))).status_code == 200


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"key": OTHER_KEY}, 700027),
        ({"header": {"x5t": thumbprint(ISSUER)}}, 700027),
        ({"header": x5c(certificate("app", OTHER_KEY)), "key": OTHER_KEY}, 700027),
        ({"header": {"kid": "x"}}, 50027),
        ({"header": {"x5t": "?"}}, 50027),
        ({"key": "a shared secret of more than thirty-two bytes", "algorithm": "HS256"}, 50027),
        ({"aud": "https://login.example/oauth2/token"}, 700023),
        ({"aud": None}, 700023),
        ({"iss": "somebody else"}, 700021),
        ({"sub": "somebody else"}, 700021),
        ({"exp": 1_600_000_000}, 700024),
        ({"exp": None}, 700024),
        ({"nbf": 4_000_000_000, "exp": 4_000_000_600}, 700024),
        ({"exp": "soon"}, 50027),
    ],
    ids=[
        *("another key", "an unknown thumbprint", "a certificate of one's own", "no thumbprint", "an odd thumbprint"),
        *("no signature of a certificate", "another endpoint", "no audience", "another issuer", "another subject"),
        *("too late", "for ever", "too early", "no number"),
    ],
)
async def test_what_is_no_proof_is_refused_with_entras_code(
    application: Application, changed: Mapping[str, Any], code: int
) -> None:
    answer = await application.prove(application.assertion(**changed))

    body = answer.json()
    assert (answer.status_code, body["error"], body["error_codes"]) == (401, "invalid_client", [code])
    assert body["error_description"].startswith(f"AADSTS{code}: ")


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "eyJhbGciOiJSUzI1NiJ9.e30"])
async def test_what_is_no_jwt_is_refused(application: Application, text: str) -> None:
    assert (await application.prove(text)).json()["error_codes"] == [50027]


async def test_another_tenants_endpoint_is_refused(application: Application) -> None:
    """An assertion that leaks at one tenant is of no use at another."""
    application.sandbox.entra.register("other.example", CLIENT, trusted=Trusted(certificates=(LEAF,)))
    text = application.assertion()
    application.url = f"{application.sandbox.entra_url}/other.example"

    assert (await application.prove(text)).json()["error_codes"] == [700023]


async def test_a_certificate_has_its_time(application: Application) -> None:
    application.sandbox.entra.issuer.now = lambda: LEAF.not_valid_after_utc.timestamp() + 1

    assert (await application.prove(application.assertion())).json()["error_codes"] == [1000502]


@pytest.mark.parametrize(
    ("chain", "is_taken"),
    [
        ((LEAF, ISSUER), True),
        ((LEAF, ISSUER, ROOT), True),
        ((LEAF,), False),
        ((ISSUER, LEAF), False),
        ((LEAF, ROOT), False),
        ((certificate("app", KEY, "issuer", OTHER_KEY), ISSUER), False),
    ],
    ids=["to the root", "with the root", "alone", "upside down", "with a gap", "issued by a pretender"],
)
async def test_a_chain_to_a_trusted_issuer_is_a_proof(
    application: Application, chain: Sequence[x509.Certificate], is_taken: bool
) -> None:
    application.sandbox.entra.register(TENANT, CLIENT, trusted=Trusted(issuers=(ROOT,)))

    answer = await application.prove(application.assertion(header=x5c(*chain)))

    assert (answer.status_code == 200) is is_taken
    assert is_taken or answer.json()["error_codes"] == [700027]


@pytest.mark.parametrize(
    "form",
    [
        {"client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"},
        {"client_assertion_type": ""},
    ],
    ids=["another type", "no type"],
)
async def test_an_assertion_of_another_type_counts_as_none(application: Application, form: Mapping[str, str]) -> None:
    assert (await application.prove(application.assertion(), **form)).json()["error_codes"] == [7000218]


async def test_an_application_without_a_secret_takes_no_empty_one(application: Application) -> None:
    form = {"grant_type": "client_credentials", "client_id": CLIENT, "client_secret": "", "scope": SCOPE}

    answer = await application.azure.post(f"{application.url}/oauth2/v2.0/token", data=form)

    assert answer.json()["error_codes"] == [7000215]


@pytest.mark.parametrize("send_chain", [False, True], ids=["thumbprint", "chain"])
async def test_azure_identity_gets_a_token_with_a_certificate(application: Application, send_chain: bool) -> None:
    trusted = Trusted(issuers=(ROOT,)) if send_chain else Trusted(certificates=(LEAF,))
    application.sandbox.entra.register(TENANT, CLIENT, trusted=trusted)
    pem = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem += b"".join(one.public_bytes(Encoding.PEM) for one in (LEAF, ISSUER))
    credential = CertificateCredential(
        *(TENANT, CLIENT),
        certificate_data=pem,
        send_certificate_chain=send_chain,
        authority=application.sandbox.entra_url,
        disable_instance_discovery=True,
        connection_verify=str(application.sandbox.ca_file),
    )

    token = await asyncio.to_thread(credential.get_token, SCOPE)

    assert jwt.decode(token.token, options={"verify_signature": False})["appid"] == CLIENT

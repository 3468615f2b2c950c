"""What a pod asks for: the query and the headers of a token request, checked once.

A selector that is not understood is an error and is never dropped: without it the request would mean "any identity
of mine" (the original dropped `object_id` and pairs that it could not decode).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from podidentity_core.reasons import Explanation, Reason, because


class SelectorKind(Enum):
    """By what a request names an identity; the value is IMDS's own name for it."""

    CLIENT_ID = "client_id"
    RESOURCE_ID = "msi_res_id"
    OBJECT_ID = "object_id"


@dataclass(frozen=True, slots=True)
class Selector:
    """The identity that a request names. *folded* is what spellings of one ID have in common."""

    kind: SelectorKind
    value: str
    folded: str

    def __str__(self) -> str:
        shown = redact(self.value) if self.kind is SelectorKind.CLIENT_ID else self.value
        return f"{self.kind.value} {shown}"


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A valid request: a token for *resource*, of the identity that *selector* names (None: any of the pod's)."""

    resource: str
    selector: Selector | None = None


_PARAMETERS = {
    "client_id": SelectorKind.CLIENT_ID,
    "msi_res_id": SelectorKind.RESOURCE_ID,
    "mi_res_id": SelectorKind.RESOURCE_ID,
    "resource_id": SelectorKind.RESOURCE_ID,
    "object_id": SelectorKind.OBJECT_ID,
    "principal_id": SelectorKind.OBJECT_ID,
}
"""IMDS's own names, adal's `mi_res_id`, and `resource_id`, which azure-identity's asyncio classes pass on as given."""
_LONGEST_QUERY = 8192


def parse_query(query: str) -> TokenRequest | Explanation:
    """Read the query of a token request, as it stands in the request line.

    Parameters other than `resource` and the selectors are ignored, `api-version` included, as by the original.
    An empty value counts as absent.
    """
    if len(query) > _LONGEST_QUERY:
        return because(Reason.BAD_QUERY, problem=f"it is longer than {_LONGEST_QUERY} characters")
    return _parse(query)


@lru_cache(maxsize=1024)
def _parse(query: str) -> TokenRequest | Explanation:
    try:
        values = _values(query)
    except ValueError as error:
        return because(Reason.BAD_QUERY, problem=str(error))
    resource = values.get("resource", "")
    if not resource:
        return because(Reason.RESOURCE_MISSING)
    selectors = {
        Selector(kind, values[name], values[name].lower()) for name, kind in _PARAMETERS.items() if values.get(name)
    }
    if len(selectors) > 1:
        return because(Reason.TWO_SELECTORS)
    return TokenRequest(resource, selectors.pop() if selectors else None)


def _values(query: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        name = _decode(name)
        if name != "resource" and name not in _PARAMETERS:
            continue
        if name in values:
            raise ValueError(f"{name} is given twice")
        values[name] = _decode(value)
    return values


_STRAY = re.compile(r"%(?![0-9A-Fa-f]{2})|[^!-~]|[;#]")


def _decode(text: str) -> str:
    if _STRAY.search(text):
        raise ValueError("it has a stray ';', '#' or '%', or a character that must be encoded")
    try:
        decoded = unquote_to_bytes(text.replace("+", " ")).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if not decoded.isprintable():  # or a pod could break the lines of our log
        raise ValueError("it has a character that cannot be shown")
    return decoded


def redact(client_id: str) -> str:
    """Show the first and last four characters only (pkg/utils/utils.go:16); what is no client ID is hidden whole."""
    ends = client_id[:4] + client_id[-4:]
    if len(client_id) < 8 or not ends.isprintable() or " " in ends:
        return "##### REDACTED #####"
    return f"{client_id[:4]}##### REDACTED #####{client_id[-4:]}"

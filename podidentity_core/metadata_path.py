"""Which part of the metadata service a request is for, judged by its raw path; what is not known is refused.

The original decided on a decoded path by patterns and passed on whatever they missed, so a backslash was enough to
get any identity of the node (CVE-2022-23551). Here a path is served or passed on only if it consists of plain
characters, which mean the same to everybody who may read it, and if it is one of the paths in this module.

    path                                   route
    /metadata/identity/oauth2/token        TOKEN      `metadata` in any letter case, slashes doubled or at the end
    /host/token                            HOST_TOKEN
    /metadata/instance and below           INSTANCE
    /metadata/versions, /attested, ...     PASSTHROUGH
    anything like a token path             INVALID    other letter case, an encoded or odd character, a suffix
    anything else                          UNKNOWN
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache


class Route(Enum):
    """Who answers a request."""

    TOKEN = auto()
    HOST_TOKEN = auto()
    INSTANCE = auto()
    PASSTHROUGH = auto()
    INVALID = auto()
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class MetadataPath:
    """A judged path. *canonical* is the one spelling that may be sent on; empty when none may."""

    route: Route
    canonical: str = ""


_PLAIN = re.compile(r"(?:/+[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+/*")
_TOKEN_LIKE = re.compile(r"identity.*oauth2|oauth2.*token|identity.*token", re.DOTALL)
_LONGEST_PATH = 1024
_TOKEN = ("identity", "oauth2", "token")
_PASSED_ON = {("versions",), ("attested", "document"), ("loadbalancer",), ("scheduledevents",)}


@lru_cache(maxsize=1024)
def classify(raw_path: str) -> MetadataPath:
    """Judge *raw_path*, the path as it stands in the request line: not decoded, without the query."""
    if len(raw_path) > _LONGEST_PATH or not _PLAIN.fullmatch(raw_path):
        return MetadataPath(Route.INVALID)
    first, *rest = (segment for segment in raw_path.split("/") if segment)
    if first.lower() == "metadata":
        return _below_metadata(tuple(rest))
    if (first, *rest) == ("host", "token"):
        return MetadataPath(Route.HOST_TOKEN, "/host/token")
    return MetadataPath(_denied(raw_path))


def _below_metadata(rest: tuple[str, ...]) -> MetadataPath:
    canonical = "/".join(("/metadata", *rest))
    if rest == _TOKEN:
        return MetadataPath(Route.TOKEN, canonical)
    if rest[:1] == ("instance",):
        return MetadataPath(Route.INSTANCE, canonical)
    if rest in _PASSED_ON:
        return MetadataPath(Route.PASSTHROUGH, canonical)
    return MetadataPath(_denied(canonical))


def _denied(path: str) -> Route:
    return Route.INVALID if _TOKEN_LIKE.search(path.lower()) else Route.UNKNOWN

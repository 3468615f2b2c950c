"""Which part of the metadata service a path is for. A path that means two things to two readers is refused."""

from __future__ import annotations

import pytest

from podidentity_core.metadata_path import MetadataPath, Route, classify

TOKEN = "/metadata/identity/oauth2/token"

SERVED = {
    # TestRouterPathPrefix
    "/metadata/identity/oauth2/token": MetadataPath(Route.TOKEN, TOKEN),
    "/metadata/identity/oauth2/token/": MetadataPath(Route.TOKEN, TOKEN),
    "/Metadata/identity/oauth2/token": MetadataPath(Route.TOKEN, TOKEN),
    "/Metadata/identity/oauth2/token/": MetadataPath(Route.TOKEN, TOKEN),
    "/METADATA/identity/oauth2/token": MetadataPath(Route.TOKEN, TOKEN),
    "/mEtAdAtA/identity/oauth2/token": MetadataPath(Route.TOKEN, TOKEN),
    # the original redirected these to the plain spelling
    "//metadata/identity/oauth2/token": MetadataPath(Route.TOKEN, TOKEN),
    "/metadata//identity/oauth2/token": MetadataPath(Route.TOKEN, TOKEN),
    "/metadata/identity///oauth2//token//": MetadataPath(Route.TOKEN, TOKEN),
    "/host/token": MetadataPath(Route.HOST_TOKEN, "/host/token"),
    "/host/token/": MetadataPath(Route.HOST_TOKEN, "/host/token"),
    "//host//token": MetadataPath(Route.HOST_TOKEN, "/host/token"),
    "/metadata/instance": MetadataPath(Route.INSTANCE, "/metadata/instance"),
    "/metadata/instance/": MetadataPath(Route.INSTANCE, "/metadata/instance"),
    "/Metadata/instance": MetadataPath(Route.INSTANCE, "/metadata/instance"),
    "/metadata/instance/compute": MetadataPath(Route.INSTANCE, "/metadata/instance/compute"),
    "/metadata/instance/compute/userData": MetadataPath(Route.INSTANCE, "/metadata/instance/compute/userData"),
    "/METADATA//instance/network": MetadataPath(Route.INSTANCE, "/metadata/instance/network"),
    "/metadata/instance/network/interface/0/ipv4": MetadataPath(
        Route.INSTANCE, "/metadata/instance/network/interface/0/ipv4"
    ),
    "/metadata/versions": MetadataPath(Route.PASSTHROUGH, "/metadata/versions"),
    "/Metadata/versions/": MetadataPath(Route.PASSTHROUGH, "/metadata/versions"),
    "/metadata/attested/document": MetadataPath(Route.PASSTHROUGH, "/metadata/attested/document"),
    "/metadata/loadbalancer": MetadataPath(Route.PASSTHROUGH, "/metadata/loadbalancer"),
    "/metadata/scheduledevents": MetadataPath(Route.PASSTHROUGH, "/metadata/scheduledevents"),
}


@pytest.mark.parametrize(("path", "judged"), SERVED.items(), ids=SERVED)
def test_a_known_path_has_one_spelling_that_is_sent_on(path: str, judged: MetadataPath) -> None:
    assert classify(path) == judged


TOKEN_LIKE = [
    # CVE-2022-23551 and the cases that its fix was tested with
    "/metadata/identity\\oauth2/token",
    "/metadata/identity\\oauth2/token/",
    "/metadata/identity/oauth2\\token",
    "/metadata/identity/oauth2\\token/",
    "/metadata/identity\\oauth2\\token/",
    "/metadata/identity/\\oauth2\\token/",
    "/metadata/identity\\\\\\oauth2\\\\\\token/",
    "/metadata/identity%5Coauth2/token",
    "/metadata/identity%5coauth2%5ctoken",
    "/metadata/identity%23/oauth2/token",
    "/x/metadata/identity/oauth2/token",
    # served by the original on its decoded path
    "/metadata/identity%2Foauth2/token",
    "/metadata/identity%2foauth2%2ftoken",
    "/metadata/identity/%6fauth2/token",
    "/metadata/identity/oauth2/token%00",
    "/metadata/identity/oauth2/token%20",
    "/%6detadata/identity/oauth2/token",
    "/metadata/identity/oauth2/%74oken",
    "/metadata%2fidentity/oauth2/token",
    # passed on by the original
    "/metadata\\identity/oauth2/token",
    "/metadata%5cidentity/oauth2/token",
    "/metadata%5Cidentity%5Coauth2%5Ctoken",
    "/metadata/Identity/oauth2/token",
    "/metadata/identity/OAuth2/token",
    "/metadata/identity/oauth2/Token",
    "/METADATA/IDENTITY/OAUTH2/TOKEN",
    "/metadata/identity%0aoauth2/token",
    "/metadata/identity%0d%0aoauth2/token",
    "/metadata%20/identity/oauth2/token",
    "/metadata%09/identity/oauth2/token",
    # decoded twice, or decoded badly
    "/metadata/identity%252Foauth2/token",
    "/metadata/identity%255coauth2/token",
    "/metadata/identity/oauth2/token%",
    "/metadata/identity/oauth2/token%zz",
    "/metadata/identity/%u006fauth2/token",
    "/metadata/identity%c0%afoauth2/token",
    "/metadata/identity/oauth2%ef%bc%8ftoken",
    # dot segments
    "/metadata/./identity/oauth2/token",
    "/metadata/../metadata/identity/oauth2/token",
    "/metadata/instance/../identity/oauth2/token",
    "/metadata/instance/%2e%2e/identity/oauth2/token",
    "/metadata/instance/.%2e/identity/oauth2/token",
    "/metadata/versions/..%2fidentity/oauth2/token",
    "/metadata/versions/..\\identity\\oauth2\\token",
    "/metadata/identity/oauth2/token/..",
    "/metadata/identity/oauth2/token/.",
    "/metadata/identity/./oauth2/token",
    # suffixes
    "/metadata/identity/oauth2/token/x",
    "/metadata/identity/oauth2/tokens",
    "/metadata/identity/oauth2/token.json",
    "/metadata/identity/oauth2/token;x=1",
    "/metadata/identity;/oauth2/token",
    "/metadata/identity/oauth2/token#x",
    "/metadata/identity/oauth2/token?",
    "/metadata/identity/oauth2/token&resource=x",
    "/metadata/identity/oauth2token",
    "/metadata/identity/oauth2",
    "/metadata/identity/token",
    "/metadata/oauth2/token",
    "/oauth2/token",
    "/identity/oauth2/token",
    # odd characters
    "/metadata/identity/oauth2/token ",
    " /metadata/identity/oauth2/token",
    "/metadata/identity/oauth2/token\t",
    "/metadata/identity/oauth2/token\n",
    "/metadata/identity/oauth2/token\x00",
    "/metadata/identity\noauth2/token",
    "/metadata/identity\r\noauth2/token",
    "/metadata/identity/oauth2/token\x7f",
    "/metadata/identity/oauth2/to\u212aen",  # the Kelvin sign, which is `k` in lower case
    "/metadata/identity\u2215oauth2/token",
    "/metadata/identity\uff0foauth2/token",
    "/m\u0435tadata/identity/oauth2/token",
    "http://169.254.169.254/metadata/identity/oauth2/token",
    "metadata/identity/oauth2/token",
    "\\metadata\\identity\\oauth2\\token",
]


@pytest.mark.parametrize("path", TOKEN_LIKE, ids=ascii)
def test_what_resembles_a_token_path_is_invalid(path: str) -> None:
    assert classify(path) == MetadataPath(Route.INVALID)


MALFORMED = [
    "",
    "*",
    "/",
    "//",
    "/.",
    "/..",
    "/metadata/..",
    "/metadata/.hidden",
    "/metadata/instance/..",
    "/metadata/instance/%2e%2e/versions",
    "/metadata/instance?x",
    "/metadata/instance/compute;x",
    "/metadata/%69nstance",
    "/metadata\\instance",
    "/metadata/versions%00",
    "/metadata/versions\n",
    "/host\\token",
    "/host%2ftoken",
    "/" + "a" * 1024,
    "/metadata/instance/" + "a/" * 600,
]


@pytest.mark.parametrize("path", MALFORMED, ids=lambda path: ascii(path[:40]))
def test_a_path_that_is_not_plain_is_invalid(path: str) -> None:
    assert classify(path) == MetadataPath(Route.INVALID)


UNKNOWN = [
    "/metadata",
    "/metadata/",
    "/metadata/Instance",
    "/metadata/Versions",
    "/metadata/instancefoo",
    "/metadata/versions/x",
    "/metadata/attested",
    "/metadata/attested/document/x",
    "/metadata/identity",
    "/metadata/identity/info",
    "/metadata/identity/getplatformmetadata",
    "/metadata/identity/issuecredential",
    "/metadata/scheduledevents/x",
    "/host",
    "/Host/token",
    "/host/Token",
    "/host/tokenXYZ",
    "/host/token/x",
    "/doesnotexist",
    "/favicon.ico",
    "/healthz",
]


@pytest.mark.parametrize("path", UNKNOWN)
def test_what_is_not_known_is_not_passed_on(path: str) -> None:
    assert classify(path) == MetadataPath(Route.UNKNOWN)


@pytest.mark.parametrize("path", [*SERVED, *TOKEN_LIKE, *MALFORMED, *UNKNOWN], ids=lambda path: ascii(path[:60]))
def test_the_spelling_that_is_sent_on_is_judged_the_same(path: str) -> None:
    judged = classify(path)

    assert not judged.canonical or classify(judged.canonical) == judged


def test_the_longest_path_is_judged() -> None:
    path = "/metadata/instance/" + "a" * (1024 - len("/metadata/instance/"))

    assert classify(path) == MetadataPath(Route.INSTANCE, path)
    assert classify(path + "a") == MetadataPath(Route.INVALID)


@pytest.mark.parametrize("code", range(256))
def test_only_one_character_between_the_segments_makes_a_token_path(code: int) -> None:
    path = f"/metadata/identity{chr(code)}oauth2/token"

    assert (classify(path).route is Route.TOKEN) == (chr(code) == "/")

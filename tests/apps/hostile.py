"""What a hostile pod may send to NMI, as bytes, and the most that it may get: a table without a server.

Each request stands for a way in which two readers of the same bytes can disagree: about where the path ends, whose
request it is, or where the next request begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Flag, auto
from itertools import product

VAULT = "https://vault.azure.net"
QUERY = f"api-version=2018-02-01&resource={VAULT}"
TOKEN = "/metadata/identity/oauth2/token"
INSTANCE = "/metadata/instance"


class May(Flag):
    """The most that a request may lead to. Being refused, or the connection's end, is always right."""

    REFUSED = 0
    TOKEN = auto()
    """A token of the asking pod's own identity."""
    UPSTREAM = auto()
    """One or more requests to the metadata service, for paths that everybody may read."""


@dataclass(frozen=True)
class Hostile:
    """A hostile request. One that is *unfinished* ends with the client's own end of the connection."""

    name: str
    raw: bytes
    may: May = May.REFUSED
    unfinished: bool = False


def head(target: str | bytes, *more: str | bytes, method: str = "GET", marked: bool = True) -> bytes:
    """Return a request's head with *more* header lines; `Metadata: true` is there if *marked*."""
    marks = ["Metadata: true"] if marked else []
    line = _bytes(method) + b" " + _bytes(target) + b" HTTP/1.1"
    lines = [line, b"Host: 169.254.169.254", *map(_bytes, marks), *map(_bytes, more), b"Connection: close", b"", b""]
    return b"\r\n".join(lines)


def token(*more: str | bytes, method: str = "GET", marked: bool = True) -> bytes:
    """Return a good request for a token, but for *more* header lines."""
    return head(f"{TOKEN}?{QUERY}", *more, method=method, marked=marked)


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


SEPARATORS = {
    "backslash": "\\",
    "two backslashes": "\\\\",
    "slash and backslash": "/\\",
    "encoded backslash": "%5c",
    "encoded BACKSLASH": "%5C",
    "encoded slash": "%2f",
    "encoded SLASH": "%2F",
    "slash encoded twice": "%252f",
    "backslash encoded twice": "%255c",
    "slash encoded thrice": "%25252f",
    "overlong slash": "%c0%af",
    "overlong slash of three bytes": "%e0%80%af",
    "overlong backslash": "%c1%9c",
    "fullwidth slash": "%ef%bc%8f",
    "division slash": "%e2%88%95",
    "raw fullwidth slash": "\uff0f",
    "IIS's slash": "%u002f",
    "NUL": "%00",
    "NUL and slash": "%00/",
    "line feed": "%0a",
    "carriage return and line feed": "%0d%0a",
    "tab": "%09/",
    "space": "%20/",
    "slash and space": "/%20",
    "delete": "%7f/",
    "semicolon": ";/",
    "parameters": ";a=b/",
    "question mark": "%3f/",
    "number sign": "%23/",
    "dot": ".",
    "dot and slash": "./",
    "colon": ":/",
    "bar": "|",
    "nothing": "",
}


def _separators() -> Iterator[Hostile]:
    segments = TOKEN.split("/")[1:]
    for place in (1, 2, 3):
        for name, separator in SEPARATORS.items():
            path = "/" + "/".join(segments[:place]) + separator + "/".join(segments[place:])
            yield Hostile(f"{name} before {segments[place]}", head(f"{path}?{QUERY}"))
    for name, separator in SEPARATORS.items():
        yield Hostile(f"{name} before metadata", head(f"{separator or '.'}{TOKEN[1:]}?{QUERY}"))
        yield Hostile(f"{name} before instance", head(f"/metadata{separator}instance"))
    for slashes in ("//", "///", "/" * 40):
        path = TOKEN.replace("/", slashes)
        yield Hostile(f"{len(slashes)} slashes each", head(f"{path}?{QUERY}"), May.TOKEN)


def _letters() -> Iterator[Hostile]:
    spellings: dict[str, Callable[[str], str]] = {
        "in upper case": str.upper,
        "with a capital": str.capitalize,
        "ending with a capital": lambda word: word[:-1] + word[-1].upper(),
        "with an encoded letter": lambda word: f"%{ord(word[0]):02x}{word[1:]}",
        "with a letter encoded twice": lambda word: f"%25{ord(word[0]):02x}{word[1:]}",
        "all encoded": lambda word: "".join(f"%{ord(letter):02X}" for letter in word),
        "with an overlong letter": lambda word: f"{word[:1]}%c1%{ord(word[1]) | 0x80:02x}{word[2:]}",
        "with a fullwidth letter": lambda word: f"%ef%bd%{ord(word[0]) - 0x61 + 0x81:02x}{word[1:]}",
        "with IIS's letter": lambda word: f"%u00{ord(word[0]):02x}{word[1:]}",
        "with a soft hyphen": lambda word: f"{word[:2]}%c2%ad{word[2:]}",
        "with a NUL": lambda word: f"{word[:2]}%00{word[2:]}",
    }
    for word, (name, spell) in product(TOKEN.split("/")[1:], spellings.items()):
        any_case = word == "metadata" and ("case" in name or "capital" in name)
        path = TOKEN.replace(word, spell(word), 1)
        if path != TOKEN:  # a digit has no case
            yield Hostile(f"{word} {name}", head(f"{path}?{QUERY}"), May.TOKEN if any_case else May.REFUSED)
    for name, spell in spellings.items():
        yield Hostile(f"instance {name}", head(f"/metadata/{spell('instance')}"))
    yield Hostile("token with the Kelvin sign", head(f"/metadata/identity/oauth2/to%e2%84%aaen?{QUERY}"))
    yield Hostile("identity with a dotless i", head(f"/metadata/%c4%b1dentity/oauth2/token?{QUERY}"))
    yield Hostile("all in upper case", head(f"{TOKEN.upper()}?{QUERY}"))


def _dots() -> Iterator[Hostile]:
    ups = {
        "..": "..",
        "dots encoded": "%2e%2e",
        "one dot encoded": ".%2e",
        "dots encoded twice": "%252e%252e",
        "dots with parameters": "..;",
        "dots with a=b": "..;a=b",
        "overlong dots": "%c0%ae%c0%ae",
        "dots and a space": "..%20",
        "dots and a NUL": "..%00",
        "three dots": "...",
        "fullwidth dots": "%ef%bc%8e%ef%bc%8e",
    }
    for (name, up), begin in product(ups.items(), ("instance", "versions", "instance/compute/..")):
        yield Hostile(f"{name} behind {begin}", head(f"/metadata/{begin}/{up}/identity/oauth2/token?{QUERY}"))
    for name, up in ups.items():
        yield Hostile(f"{name} and a backslash", head(f"/metadata/instance/{up}\\identity\\oauth2\\token?{QUERY}"))
        yield Hostile(f"{name} and an encoded slash", head(f"/metadata/instance/{up}%2fidentity%2foauth2%2ftoken"))
        yield Hostile(f"{name} behind token", head(f"{TOKEN}/{up}/token?{QUERY}"))
        yield Hostile(f"{name} at the end", head(f"{INSTANCE}/{up}"))
    for name, here in {"a dot": ".", "a dot encoded": "%2e", "a dot with parameters": ".;a=b"}.items():
        yield Hostile(f"{name} before identity", head(f"/metadata/{here}/identity/oauth2/token?{QUERY}"))
        yield Hostile(f"{name} at the end", head(f"{TOKEN}/{here}?{QUERY}"))


def _suffixes() -> Iterator[Hostile]:
    ends = ("s", ".json", ";", ";a=b", ".", "..", "/x", "%00", "%20", "%09", "%0a", "%23", "%3f", "%3fresource=x", "*")
    odd = ("%", "%2", "%zz", "\\", "%5c", ":80", "&resource=x", "'", '"', "<", "`", "{}", "^", "~", "@", "$", "%ff")
    for end in (*ends, *odd):
        yield Hostile(f"token{end}", head(f"{TOKEN}{end}?{QUERY}"))


_NEIGHBOURS = (
    *("/metadata/identity/issuecredential", "/metadata/identity/getplatformmetadata", "/metadata/identity/info"),
    *("/metadata/identity", "/metadata/identity/", "/metadata/identity/oauth2", "/metadata/identity/token"),
    *("/metadata/identity/oauth2/authorize", "/metadata/identity/oauth2/v2.0/token", "/metadata/oauth2/token"),
    *("/metadata/attested", "/metadata/scheduledevents/x", "/metadata/instancex", "/metadata/THIM/amd/certification"),
    *("/host/token", "/hostgaplugin", "/machine/plugins", "/latest/meta-data/iam", "/computeMetadata/v1/instance", "/"),
)


def _neighbours() -> Iterator[Hostile]:
    for path in _NEIGHBOURS:
        yield Hostile(f"GET {path}", head(f"{path}?cred-api-version=2.0&{QUERY}"))
        yield Hostile(f"POST {path} with a body", head(path, "Content-Length: 2", method="POST") + b"{}")


def _targets() -> Iterator[Hostile]:
    """Absolute form is for every server; all other forms are not for this one."""
    hosts = ("169.254.169.254", "169.254.169.254:80", "elsewhere.example", "127.0.0.1", "[::1]:80", "user:pw@127.0.0.1")
    for host in hosts:
        yield Hostile(f"absolute form, {host}, token", head(f"http://{host}{TOKEN}?{QUERY}"), May.TOKEN)
        yield Hostile(f"absolute form, {host}, instance", head(f"http://{host}{INSTANCE}"), May.UPSTREAM)
        yield Hostile(
            f"absolute form, {host}, issuecredential", head(f"http://{host}/metadata/identity/issuecredential")
        )
    odd = {
        "https": f"https://169.254.169.254{TOKEN}?{QUERY}",
        "another scheme": f"gopher://169.254.169.254{TOKEN}?{QUERY}",
        "no host": f"http://{TOKEN}?{QUERY}",
        "a fragment": f"{TOKEN}?{QUERY}#x",
        "a fragment for a query": f"{TOKEN}#?{QUERY}",
    }
    for name, target in odd.items():
        yield Hostile(f"target with {name}", head(target), May.TOKEN)
    never = {
        "no path": "http://169.254.169.254",
        "a backslash for a host": f"http:\\\\169.254.169.254{TOKEN}?{QUERY}",
        "one slash": f"http:/169.254.169.254{TOKEN}?{QUERY}",
        "a scheme only": "http:",
        "dots": f"http://169.254.169.254/x/..{TOKEN}?{QUERY}",
        "authority form": "169.254.169.254:80",
        "asterisk form": "*",
        "asterisk and path": f"*{TOKEN}?{QUERY}",
        "a query only": f"?{QUERY}",
        "a fragment only": "#",
        "no leading slash": f"{TOKEN[1:]}?{QUERY}",
        "an encoded leading slash": f"%2f{TOKEN[1:]}?{QUERY}",
        "a fragment in the path": f"/metadata/identity#/oauth2/token?{QUERY}",
        "instance in a fragment": f"/metadata/identity/info#{INSTANCE}",
    }
    for name, target in never.items():
        yield Hostile(f"target: {name}", head(target))
    yield Hostile("instance with a fragment", head(f"{INSTANCE}#/../identity/oauth2/token"), May.UPSTREAM)
    yield Hostile("instance with a fragment behind the query", head(f"{INSTANCE}?a=b#c"), May.UPSTREAM)


def _line(line: str | bytes, end: bytes = b"\r\n") -> bytes:
    lines = (_bytes(line), b"Host: 169.254.169.254", b"Metadata: true", b"Connection: close", b"", b"")
    return end.join(lines)


def _request_lines() -> Iterator[Hostile]:
    """Lax readings are no harm here: the request gets what it would get in its right form."""
    path = f"{TOKEN}?{QUERY}"
    lax = {
        "two spaces before the path": f"GET  {path} HTTP/1.1",
        "two spaces before the version": f"GET {path}  HTTP/1.1",
        "a space at the end": f"GET {path} HTTP/1.1 ",
        "HTTP/1.0": f"GET {path} HTTP/1.0",
        "HTTP/0.9": f"GET {path} HTTP/0.9",
        "HTTP/2.0": f"GET {path} HTTP/2.0",
        "no version, but headers": f"GET {path}",
        "an empty line before": f"\r\nGET {path} HTTP/1.1",
        "a line feed before": f"\nGET {path} HTTP/1.1",
        "HTTP/1.2": f"GET {path} HTTP/1.2",
        "HTTP/3.0": f"GET {path} HTTP/3.0",
        "another protocol": f"GET {path} RTSP/1.0",
    }
    for name, line in lax.items():
        yield Hostile(f"request line: {name}", _line(line), May.TOKEN)
    never: dict[str, str | bytes] = {
        "a tab before the path": f"GET\t{path} HTTP/1.1",
        "a tab before the version": f"GET {path}\tHTTP/1.1",
        "a tab in the path": "GET /metadata/identity\t/oauth2/token HTTP/1.1",
        "a space in the path": f"GET /metadata/ identity/oauth2/token?{QUERY} HTTP/1.1",
        "a space in the query": f"GET {path} &x HTTP/1.1",
        "a space before the method": f" GET {path} HTTP/1.1",
        "a carriage return in the path": f"GET /metadata/\ridentity/oauth2/token?{QUERY} HTTP/1.1",
        "a NUL in the path": f"GET /metadata/\x00identity/oauth2/token?{QUERY} HTTP/1.1",
        "a NUL behind the path": f"GET {TOKEN}\x00?{QUERY} HTTP/1.1",
        "a NUL before the method": f"\x00GET {path} HTTP/1.1",
        "a vertical tab": f"GET\v{path}\vHTTP/1.1",
        "a no-break space": f"GET\u00a0{path} HTTP/1.1",
        "a byte order mark": f"\ufeffGET {path} HTTP/1.1",
        "high bytes in the path": b"GET /metadata/identit\xe9/oauth2/token HTTP/1.1",
        "high bytes in the query": b"GET " + path.encode() + b"&client_id=\xff HTTP/1.1",
        "no path": "GET HTTP/1.1",
        "an empty path": "GET  HTTP/1.1",
        "a method only": "GET",
        "HTTP/11": f"GET {path} HTTP/11",
        "HTTP/1.10": f"GET {path} HTTP/1.10",
        "HTTP/1,1": f"GET {path} HTTP/1,1",
        "http/1.1 in lower case": f"GET {path} http/1.1",
        "HTTPS/1.1": f"GET {path} HTTPS/1.1",
        "ICY": f"GET {path} ICY/1.1",
        "two request lines": f"GET {path} HTTP/1.1\r\nGET {path} HTTP/1.1",
        "an answer": "HTTP/1.1 200 OK",
        "the preface of HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    }
    for name, broken in never.items():
        yield Hostile(f"request line: {name}", _line(broken))
    yield Hostile("line ends: line feeds only", _line(f"GET {path} HTTP/1.1", b"\n"), May.TOKEN)
    yield Hostile("line ends: carriage returns only", _line(f"GET {path} HTTP/1.1", b"\r"), unfinished=True)
    yield Hostile("line ends: doubled carriage returns", _line(f"GET {path} HTTP/1.1", b"\r\r\n"))
    yield Hostile("line ends: the wrong way round", _line(f"GET {path} HTTP/1.1", b"\n\r"), May.TOKEN)
    yield Hostile("a TLS client's hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500))
    yield Hostile("SSH", b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    yield Hostile("the proxy protocol", b"PROXY TCP4 127.1.0.1 127.0.0.1 1 80\r\n" + token())
    yield Hostile("the proxy protocol, binary", b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + token())


_METHODS = ("POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PATCH", "PROPFIND", "M-SEARCH", "PURGE")
_MADE_UP = ("FOO", "GETT", "GE", "get", "Get", "POSTGET", "G.E.T", "GET,POST", "\u0413ET")
_ASKED = (f"{TOKEN}?{QUERY}", "/metadata/scheduledevents", INSTANCE, "/metadata/identity/issuecredential")


def _methods() -> Iterator[Hostile]:
    for method, target in product((*_METHODS, *_MADE_UP), _ASKED):
        passed_on = method == "HEAD" and "identity" not in target
        may = May.UPSTREAM if passed_on else May.REFUSED
        yield Hostile(f"{method} {target.partition('?')[0]}", head(target, method=method), may)
    body = b'{"StartRequests":[{"EventId":"1"}]}'
    length = f"Content-Length: {len(body)}"
    yield Hostile("POST that starts an event", head("/metadata/scheduledevents", length, method="POST") + body)
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        yield Hostile(f"GET with {name}", head("/metadata/scheduledevents", f"{name}: POST"), May.UPSTREAM)
    yield Hostile("POST of a form", head(TOKEN, f"Content-Length: {len(QUERY)}", method="POST") + QUERY.encode())
    yield Hostile("GET with the query in its body", head(TOKEN, f"Content-Length: {len(QUERY)}") + QUERY.encode())


def _forwarded() -> Iterator[Hostile]:
    """With `X-Forwarded-For` nobody gets anything; the likes of it change nothing."""
    refused = ("X-Forwarded-For: 1", "x-forwarded-for: 1", "X-FORWARDED-FOR: 1", "X-fOrWaRdEd-FoR: 1")
    odd = (
        "X-Forwarded-For:",
        "X-Forwarded-For: ",
        "X-Forwarded-For:1",
        "X-Forwarded-For:\t1",
        "X-Forwarded-For: \t 1 ",
    )
    broken = ("X-Forwarded-For : 1", "X-Forwarded-For\t: 1", "X-Forwarded-For", " X-Forwarded-For: 1")
    strange = ("X-Forwarded-For\x00: 1", "X-Forwarded-For\v: 1", "X-Forwarded-For\r: 1", "X-Forwarded\u2010For: 1")
    for line in (*refused, *odd, *broken[:3], *strange):
        shown = ascii(line)[1:-1]
        yield Hostile(f"token with {shown!r}", token(line))
        yield Hostile(f"instance with {shown!r}", head(INSTANCE, line))
    for line in ("\tX-Forwarded-For: 1", " X-Forwarded-For: 1"):
        yield Hostile(f"token, folded: {line!r}", token(line))
        yield Hostile(f"instance, folded behind Accept: {line!r}", head(INSTANCE, "Accept: a", line), May.UPSTREAM)
    yield Hostile("X-Forwarded-For before Metadata", token("X-Forwarded-For: 1", "Metadata: true", marked=False))
    yield Hostile("X-Forwarded-For twice", token("X-Forwarded-For: 1", "X-Forwarded-For: 127.1.0.1"))
    yield Hostile("X-Forwarded-For as a trailer", _chunked(b"0\r\nX-Forwarded-For: 1\r\n\r\n"), May.TOKEN)
    kin = ("Forwarded: for=127.1.0.1", "X-Real-IP: 127.1.0.1", "X-Client-IP: 127.1.0.1", "True-Client-IP: 127.1.0.1")
    more = ("X_Forwarded_For: 127.1.0.1", "X-Forwarded: 127.1.0.1", "X-Forwarded-Host: 127.1.0.1", "Via: 1.1 x")
    rest = ("X-Original-URL: /x", "X-Rewrite-URL: /x", "X-Forwarded-Prefix: /x", "X-Original-Forwarded-For: 127.1.0.1")
    ours = ("Podname: web-0", "Podns: default", "X-Cluster-Client-Ip: 127.1.0.1", "CF-Connecting-IP: 127.1.0.1")
    for line in (*kin, *more, *rest, *ours):
        yield Hostile(f"token with {line!r}", token(line), May.TOKEN)
    for line in (*kin, *more, *rest[:2]):
        yield Hostile(f"instance with {line!r}", head(INSTANCE, line), May.UPSTREAM)


def _metadata() -> Iterator[Hostile]:
    right = ("Metadata:true", "METADATA: true", "metadata:  true", "Metadata:\ttrue", "Metadata: true  ")
    for line in right:
        yield Hostile(f"marked by {line!r}", token(line, marked=False), May.TOKEN)
    wrong = (
        "Metadata: True",
        "Metadata: TRUE",
        "Metadata: 1",
        "Metadata:",
        "Metadata: true,true",
        "Metadata: true;a=b",
    )
    odd = ("Metadata: 'true'", 'Metadata: "true"', "Metadata: true\x00", "Metadata: t\x00rue", "Metadata: %74rue")
    names = ("Metadata : true", "Metadata\t: true", "Meta-data: true", "Metadata_: true", "X-Metadata: true")
    broken = ("Metadata", "Metadata true", "Metadata=true", ": true", "Metadata\v: true", "Metad\u0430ta: true")
    spaces = ("Metadata: \u00a0true", "Metadata: true\v", "Metadata: \x0ctrue", "Metadata: tr ue", "Metadata: truetrue")
    for line in (*wrong, *odd, *names, *broken, *spaces):
        yield Hostile(f"marked by {ascii(line)[1:-1]!r}", token(line, marked=False))
    yield Hostile("not marked", token(marked=False))
    yield Hostile("instance, not marked", head(INSTANCE, marked=False))
    yield Hostile("marked by a query", head(f"{TOKEN}?{QUERY}&Metadata=true", marked=False))
    yield Hostile("marked first wrongly", token("Metadata: false", "Metadata: true", marked=False))
    yield Hostile("marked twice", token("Metadata: true"), May.TOKEN)
    yield Hostile("marked first rightly", token("Metadata: false"), May.TOKEN)
    yield Hostile("marked by a folded value", token("Metadata:\r\n true", marked=False), May.TOKEN)
    yield Hostile("marked, and more folded behind it", token("Metadata: true\r\n x", marked=False))
    yield Hostile("marked by a folded name", token("Meta\r\n data: true", marked=False))
    yield Hostile("marked behind another value", token("Accept: x\rMetadata: true", marked=False))
    yield Hostile("marked behind a NUL", token("Accept: x\x00\r\nMetadata: true", marked=False))
    yield Hostile("marked by a trailer", _chunked(b"0\r\nMetadata: true\r\n\r\n", marked=False))


def _host() -> Iterator[Hostile]:
    line = f"GET {TOKEN}?{QUERY} HTTP/1.1\r\n"
    end = "Metadata: true\r\nConnection: close\r\n\r\n"
    hosts = {
        "none": "",
        "empty": "Host:\r\n",
        "two": "Host: a\r\nHost: b\r\n",
        "two alike": "Host: a\r\nHost: a\r\n",
        "elsewhere": "Host: elsewhere.example\r\n",
        "another pod": "Host: 127.1.0.1\r\n",
        "with a path": "Host: a/../b\r\n",
        "with a user": "Host: user@127.0.0.1\r\n",
        "a list": "Host: a, b\r\n",
        "a bad port": "Host: a:99999\r\n",
        "folded": "Host:\r\n a\r\n",
        "long": f"Host: {'a' * 5000}\r\n",
    }
    for name, host in hosts.items():
        yield Hostile(f"host: {name}", (line + host + end).encode(), May.TOKEN)
    for name, host in {
        "a NUL": "Host: a\x00b\r\n",
        "a space before it": " Host: a\r\n",
        "no colon": "Host\r\n",
    }.items():
        yield Hostile(f"host: {name}", (line + host + end).encode())


def _chunked(body: bytes, *more: str, marked: bool = True) -> bytes:
    return token("Transfer-Encoding: chunked", *more, marked=marked) + body


def _lengths() -> Iterator[Hostile]:
    """A body is nothing to NMI; what counts is that both sides agree where it ends, or part."""
    for length in ("0", "5", "00005", " 5 "):
        yield Hostile(f"Content-Length: {length!r}", token(f"Content-Length: {length}") + b"hello", May.TOKEN)
    for length in ("10", "18446744073709551615", "999999999999"):
        yield Hostile(f"Content-Length: {length}, and less", token(f"Content-Length: {length}") + b"a", May.TOKEN, True)
    wrong = ("-1", "+5", "0x5", "5,5", "5, 6", "5 5", "5.0", "1e1", "", "five", "\u0665", "5;", "5\x00")
    for length in (*wrong, "18446744073709551616", "9" * 100):
        yield Hostile(f"Content-Length: {ascii(length)[:40]}", token(f"Content-Length: {length}") + b"hello", May.TOKEN)
    both = {
        "two alike": ("Content-Length: 5", "Content-Length: 5"),
        "two": ("Content-Length: 5", "Content-Length: 6"),
        "none and five": ("Content-Length: 0", "Content-Length: 5"),
        "length and chunked": ("Content-Length: 5", "Transfer-Encoding: chunked"),
        "chunked and length": ("Transfer-Encoding: chunked", "Content-Length: 5"),
        "chunked and an odd length": ("Transfer-Encoding: chunked", "Content-Length: -1"),
    }
    for name, lines in both.items():
        yield Hostile(f"lengths: {name}", token(*lines) + b"0\r\n\r\n", May.TOKEN, unfinished=True)
    codings = (
        "identity",
        "gzip",
        "gzip, chunked",
        "chunked, gzip",
        "chunked, chunked",
        "chunked;a=b",
        "x",
        "",
        "\x0bchunked",
    )
    spelled = ("CHUNKED", " chunked ", "chunked,", ",chunked", "'chunked'", "chunke\u0501", "chunked\x00", "xchunked")
    for coding in (*codings, *spelled):
        raw = token(f"Transfer-Encoding: {coding}") + b"0\r\n\r\n"
        yield Hostile(f"Transfer-Encoding: {coding!a}", raw, May.TOKEN, unfinished=True)
    for name in ("Transfer-Encoding : chunked", "Transfer_Encoding: chunked", "Transfer-Encoding\r\n : chunked"):
        yield Hostile(ascii(name), token(name) + b"0\r\n\r\n", May.TOKEN)
    bodies = {
        "a good one": b"5\r\nhello\r\n0\r\n\r\n",
        "an extension": b"5;a=b\r\nhello\r\n0;c\r\n\r\n",
        "an endless extension": b"5;" + b"a" * 50_000 + b"\r\nhello\r\n0\r\n\r\n",
        "leading zeros": b"0000000000000005\r\nhello\r\n0\r\n\r\n",
        "a prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
        "a negative size": b"-5\r\nhello\r\n0\r\n\r\n",
        "a size that is none": b"five\r\nhello\r\n0\r\n\r\n",
        "a size beyond 64 bits": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        "a size of 16 digits": b"ffffffffffffffff\r\nhello",
        "line feeds": b"5\nhello\n0\n\n",
        "a chunk that is too long": b"4\r\nhello\r\n0\r\n\r\n",
        "a chunk that is too short": b"6\r\nhello\r\n0\r\n\r\n",
        "no end": b"5\r\nhello\r\n",
        "a thousand chunks": b"1\r\na\r\n" * 1000 + b"0\r\n\r\n",
        "a bad trailer": b"0\r\nbad\r\n\r\n",
        "many trailers": b"0\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
        "a trailer with a length": b"0\r\nContent-Length: 5\r\n\r\n",
    }
    for name, body in bodies.items():
        yield Hostile(f"chunked: {name}", _chunked(body), May.TOKEN, unfinished=True)


def _smuggled() -> Iterator[Hostile]:
    """Behind a request, something that one reader takes for its body and another for the next request."""
    steals = head("/metadata/identity/issuecredential", method="POST")
    reads = head(INSTANCE)
    behind = {"issuecredential": (steals, May.REFUSED), "instance": (reads, May.UPSTREAM)}
    for name, (second, may) in behind.items():
        length = len(second)
        pairs = {
            "with no length": _open("GET", INSTANCE) + second,
            "as a body": _open("POST", "/metadata/scheduledevents", f"Content-Length: {length}") + second,
            "as a body that is cut": _open("POST", "/metadata/versions", f"Content-Length: {length - 9}") + second,
            "as the body of a GET": _open("GET", "/metadata/versions", f"Content-Length: {length}") + second,
            "with two lengths": _open("POST", TOKEN, "Content-Length: 0", f"Content-Length: {length}") + second,
            "CL.TE": _open("POST", TOKEN, f"Content-Length: {length + 5}", "Transfer-Encoding: chunked")
            + b"0\r\n\r\n"
            + second,
            "TE.CL": _open("POST", TOKEN, "Content-Length: 4", "Transfer-Encoding: chunked")
            + b"%x\r\n%b\r\n0\r\n\r\n" % (length, second),
            "TE.TE": _open("POST", TOKEN, "Transfer-Encoding: chunked", "Transfer-Encoding: identity")
            + b"0\r\n\r\n"
            + second,
            "TE.TE in odd letters": _open("POST", TOKEN, "Transfer-Encoding: chunked", "Transfer-encoding: cow")
            + b"0\r\n\r\n"
            + second,
            "behind a HEAD": _open("HEAD", INSTANCE) + second,
            "behind an upgrade": _open("GET", INSTANCE, "Upgrade: h2c", "Connection: Upgrade") + second,
            "behind CONNECT": _open("CONNECT", "127.0.0.1:80") + second,
            "behind an expectation": _open("POST", TOKEN, "Expect: 100-continue", f"Content-Length: {length}") + second,
            "behind an empty line": b"\r\n" + _open("GET", "/metadata/versions") + b"\r\n\r\n" + second,
            "in the query": head(INSTANCE + "?a=" + second.decode().replace("\r\n", "%0d%0a").replace(" ", "%20")),
            "in the path": head(INSTANCE + "/%20HTTP/1.1%0d%0aHost:%20a%0d%0a%0d%0aGET%20/metadata/identity/info"),
            "in a header": head(INSTANCE, b"Accept: a\r\n\r\n" + second),
        }
        for how, raw in pairs.items():
            yield Hostile(f"{name} smuggled {how}", raw, may | May.UPSTREAM, unfinished="CL" in how or "cut" in how)


def _open(method: str, target: str, *more: str) -> bytes:
    """The head of a request whose connection stays open."""
    return head(target, *more, method=method).replace(b"Connection: close\r\n", b"")


def _protocols() -> Iterator[Hostile]:
    lines = {
        "100-continue": ("Expect: 100-continue",),
        "100-continue with a body": ("Expect: 100-continue", "Content-Length: 5"),
        "another expectation": ("Expect: the-inquisition",),
        "two expectations": ("Expect: 100-continue", "Expect: 100-continue"),
        "h2c": ("Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
        "websocket": ("Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==", "Sec-WebSocket-Version: 13"),
        "TLS": ("Upgrade: TLS/1.0",),
        "trailers": ("TE: trailers", "Trailer: Metadata"),
        "a trailer that is X-Forwarded-For": ("Trailer: X-Forwarded-For",),
        "a coding of the answer": ("Accept-Encoding: gzip, br, chunked", "TE: chunked"),
        "a range": ("Range: bytes=0-10",),
        "many ranges": ("Range: bytes=" + ",".join(f"{one}-" for one in range(500)),),
        "a condition": ("If-None-Match: *", "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT"),
        "an origin": ("Origin: http://elsewhere.example", "Access-Control-Request-Method: GET"),
        "proxy credentials": ("Proxy-Authorization: Basic YTpi", "Proxy-Connection: keep-alive"),
        "Connection: metadata": ("Connection: metadata",),
        "Connection: X-Forwarded-For": ("Connection: close, x-forwarded-for",),
        "Connection: upgrade alone": ("Connection: upgrade",),
        "Keep-Alive": ("Keep-Alive: timeout=999999999, max=999999999",),
        "Max-Forwards": ("Max-Forwards: 0",),
    }
    for name, more in lines.items():
        upgrading = ("Connection: Upgrade",) if more[0].startswith("Upgrade") else ()
        yield Hostile(f"token asking for {name}", token(*more, *upgrading), May.TOKEN)
        yield Hostile(f"instance asking for {name}", head(INSTANCE, *more, *upgrading), May.UPSTREAM)


def _sizes() -> Iterator[Hostile]:
    yield Hostile("a query of 8 KiB", head(f"{TOKEN}?{QUERY}&x={'x' * 8192}"))
    yield Hostile("a query of 1 MiB", head(f"{TOKEN}?{QUERY}&x={'x' * 2**20}"))
    yield Hostile("a path of 1 KiB", head(f"{INSTANCE}/{'x' * 1024}"))
    yield Hostile("a path of 100 KiB", head(f"{INSTANCE}/{'x' * 102_400}"))
    yield Hostile("a path of 10,000 slashes", head("/" * 10_000 + TOKEN))
    yield Hostile("a path of 10,000 backslashes", head("/metadata/identity" + "\\" * 10_000 + "oauth2/token"))
    yield Hostile("a path that is slow to match", head("/metadata/" + "identity" * 1000 + "oauth2" * 1000))
    yield Hostile("a method of 10 KiB", head(INSTANCE, method="G" * 10_240))
    yield Hostile("a header of 30 KiB", token("X: " + "x" * 30_000), May.TOKEN)
    yield Hostile("a header of 100 KiB", token("X: " + "x" * 102_400))
    yield Hostile("100 KiB of headers", token(*(f"X-{one}: {'x' * 1000}" for one in range(100))))
    yield Hostile("100 headers", token(*(f"X-{one}: x" for one in range(100))), May.TOKEN)
    yield Hostile("1,000 headers", token(*(f"X-{one}: x" for one in range(1000))))
    yield Hostile("8,000 headers", token(*("a:" for _ in range(8000))))
    yield Hostile("1,000 times Metadata", token(*["Metadata: true"] * 1000))
    yield Hostile("a header's name of 20 KiB", token("X" * 20_000 + ": x"), May.TOKEN)
    yield Hostile("nothing but header", b"X" * 200_000)
    yield Hostile("nothing but empty lines", b"\r\n" * 50_000 + token(), May.TOKEN)
    yield Hostile("a body of 1 MiB", token("Content-Length: 1048576") + bytes(2**20), May.TOKEN)
    yield Hostile("20 requests at once", _open("GET", f"{TOKEN}?{QUERY}") * 19 + token(), May.TOKEN)


def _names() -> Iterator[Hostile]:
    for code in (*range(0x20), *map(ord, ' "(),/:;<=>?@[\\]{}'), 0x7F, 0x80, 0xA0, 0xE9, 0xFF):
        harmless = May.TOKEN if chr(code) in "\n:" else May.REFUSED  # another line, or an early end of the name
        yield Hostile(f"header name with byte 0x{code:02x}", token(b"X%cY: z" % code), harmless)
    for code in (0, 1, 7, 8, 11, 12, 13, 27, 127):
        yield Hostile(f"header value with byte 0x{code:02x}", head(INSTANCE, b"Accept: a%cb" % code), May.UPSTREAM)
    yield Hostile("header value in UTF-8", token("X: \u00e9"), May.TOKEN)
    yield Hostile("header value in Latin-1", token(b"X: \xe9"), May.TOKEN)
    yield Hostile("Accept in Latin-1", head(INSTANCE, b"Accept: \xe9"), May.UPSTREAM)
    yield Hostile("Accept with a line of its own", head(INSTANCE, "Accept: a\nX-Forwarded-For: 1"))
    yield Hostile("an empty header line", token("X:"), May.TOKEN)
    yield Hostile("a header without a name", token(": x"))
    yield Hostile("a header without a colon", token("x"))
    yield Hostile("a header with a leading space", token(" X: y"))


def _queries() -> Iterator[Hostile]:
    """What a request asks for is never widened: a selector that is not understood is no selector of any identity."""
    other = "00000000-0000-0000-0000-00000000beef"
    refused = (
        *("", "resource=", "Resource=x", "resource[]=x", "resource%00=x", "resource=x%00", "resource=x%0d%0aHost:a"),
        *("resource=x&resource=y", "resource=x&%72esource=y", "resource=x;client_id=y", "resource=%", "resource=%zz"),
        *("resource=%ff", "resource=%c0%af", "resource=%ed%a0%80", "resource=x%C2%85y", "resource=x%E2%80%A8y"),
        *(f"resource=x&client_id={other}", f"resource=x&object_id={other}", "resource=x&msi_res_id=/subscriptions/x"),
        *(f"resource=x&client_id={other}%", f"resource=x&client_id={other};", "resource=x&client_id=%zz"),
        *(f"resource=x&client_id={other}&client_id=", f"resource=x&client_id={other}&object_id={other}"),
        *(f"resource=x&client%5fid={other}", f"resource=x&client_id=%20{other}", "resource=x&client_id=*"),
        *("resource=x&client_id=%EF%BC%8A", "resource=x&mi_res_id=..", "resource=x&client_id='or'1'='1"),
    )
    for query in refused:
        yield Hostile(f"token?{query}", head(f"{TOKEN}?{query}"))
    passed = (
        "a=%2e%2e/identity",
        "a=\\..\\identity",
        "?",
        "a=b?c=d",
        "api-version=2018-02-01&resource=x",
        "%",
        "a=%00",
    )
    for query in (
        *passed,
        "a=%0d%0aX-Forwarded-For:1",
        "a=b%20HTTP/1.1%0d%0a",
        "&&",
        "=",
        "a;b",
        "a[]=b",
        '"',
        "'",
        "<>",
    ):
        yield Hostile(f"instance?{query}", head(f"{INSTANCE}?{query}"), May.UPSTREAM)


def _unfinished() -> Iterator[Hostile]:
    whole = token()
    cuts = {
        "nothing": 0,
        "one byte": 1,
        "a method": 4,
        "half a path": 20,
        "a request line": whole.index(b"\r\n") + 2,
        "half a header": whole.index(b"Metadata") + 4,
        "all but the empty line": len(whole) - 2,
        "all but a line feed": len(whole) - 1,
    }
    for name, length in cuts.items():
        yield Hostile(f"unfinished: {name}", whole[:length], unfinished=True)


FAMILIES = {
    "separators": list(_separators()),
    "letters": list(_letters()),
    "dots": list(_dots()),
    "suffixes": list(_suffixes()),
    "neighbours": list(_neighbours()),
    "forms of the target": list(_targets()),
    "request lines": list(_request_lines()),
    "methods": list(_methods()),
    "X-Forwarded-For": list(_forwarded()),
    "Metadata": list(_metadata()),
    "Host": list(_host()),
    "lengths": list(_lengths()),
    "smuggling": list(_smuggled()),
    "protocols": list(_protocols()),
    "sizes": list(_sizes()),
    "odd bytes": list(_names()),
    "queries": list(_queries()),
    "unfinished": list(_unfinished()),
}
"""The corpus."""

"""Who may import what: the table of docs/architecture.md, and the check that reads it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

IMPURE = frozenset(
    {"asyncio", "concurrent", "datetime", "http", "io", "logging", "multiprocessing", "os", "pathlib", "queue"}
    | {"random", "secrets", "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "sys"}
    | {"tempfile", "threading", "time", "urllib.request", "uuid"}
)
"""Standard library that knows the time, chance or the outside world."""


@dataclass(frozen=True)
class Rule:
    """What modules below *package* may import besides the standard library; *without* is taken out again."""

    package: str
    allowed: tuple[str, ...] = ()
    without: frozenset[str] = frozenset()


_CORE = ("podidentity_core",)
_ADAPTERS = ("podidentity_k8s", "podidentity_azure")
_SHARED = (*_CORE, "apps")
_WEB = ("fastapi", "starlette", "uvicorn", "httptools", "uvloop", "httpx")
_TEST_SUPPORT = frozenset({"podidentity_core.testing"})
_PROGRAMS = frozenset({"apps.ctl", "apps.demo", "apps.mic", "apps.nmi", "apps.sandbox"})
_OTHERS = _TEST_SUPPORT | _PROGRAMS
_TEST_IMPURE = IMPURE - {"asyncio", "random", "uuid"}

RULES = (
    Rule("podidentity_core", _CORE, IMPURE | _TEST_SUPPORT | {"podidentity_core.services"}),
    Rule("podidentity_core.services", _CORE, (IMPURE - {"asyncio", "logging"}) | _TEST_SUPPORT),
    Rule("podidentity_core.testing", _CORE, _TEST_IMPURE),
    Rule("podidentity_core.testing.contracts", (*_CORE, "pytest"), _TEST_IMPURE),
    Rule("podidentity_k8s", (*_CORE, "podidentity_k8s", "kubernetes", "aiohttp", "pydantic", "yaml"), _TEST_SUPPORT),
    Rule(
        "podidentity_azure",
        (*_CORE, "podidentity_azure", "azure", "cryptography", "httpx", "aiohttp", "jwt", "pydantic", "yaml"),
        _TEST_SUPPORT,
    ),
    Rule("apps", (*_SHARED, "uvicorn", "uvloop"), _OTHERS),
    Rule("apps.mic", _SHARED, _OTHERS),
    Rule("apps.mic.bootstrap", (*_SHARED, *_ADAPTERS), _OTHERS),
    Rule("apps.nmi", (*_SHARED, *_WEB), _OTHERS),
    Rule("apps.nmi.bootstrap", (*_SHARED, *_ADAPTERS, *_WEB), _OTHERS),
    Rule("apps.sandbox", ("apps.sandbox", *_WEB, "aiohttp", "jwt", "cryptography", "yaml")),
    # A pod's own application, which knows nothing of the project: any client library may be its own.
    Rule("apps.demo", ("apps.demo", "azure.identity", "azure.core", "httpx", "jwt", "requests")),
    Rule("apps.ctl", (*_SHARED, "aiohttp", "httpx", "yaml"), _OTHERS - {"apps.sandbox"}),
)
"""The rule of the longest package name that fits a module is the module's. A program may import its own modules."""


def violations(root: Path, folders: Iterable[str] = (".",)) -> list[str]:
    """Return a line for each import in *folders* of *root* that no rule allows, and for each module without a rule."""
    paths = (path for folder in folders for path in (root / folder).rglob("*.py"))
    return sorted(line for path in paths for line in _violations_of(path, root))


def _violations_of(path: Path, root: Path) -> Iterator[str]:
    module = _module_name(path, root)
    rule = max((rule for rule in RULES if _is_below(module, rule.package)), key=lambda r: len(r.package), default=None)
    if rule is None:
        yield f"{module} has no rule"
        return
    for line, names in _imports(ast.parse(path.read_bytes()), module, is_package=path.name == "__init__.py"):
        if not any(_is_allowed(name, rule) for name in names) or any(_is_taken_out(name, rule) for name in names):
            yield f"{module}:{line} imports {names[-1]}"


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield every import of *tree*, also inside functions and for types only, as the names it may stand for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, (alias.name,)) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(node, module, is_package=is_package)
            yield from ((node.lineno, (source, f"{source}.{alias.name}")) for alias in node.names)


def _absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    here = module.split(".")
    up = node.level - 1 if is_package else node.level
    return ".".join(filter(None, (*here[: len(here) - up], node.module)))


def _is_allowed(name: str, rule: Rule) -> bool:
    return name.split(".")[0] in sys.stdlib_module_names or any(_is_below(name, one) for one in rule.allowed)


def _is_taken_out(name: str, rule: Rule) -> bool:
    return any(_is_below(name, one) for one in rule.without if not _is_below(rule.package, one))


def _is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")

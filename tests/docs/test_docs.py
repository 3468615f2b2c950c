"""The documentation says what the code does: generated tables are up to date, links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps.goflags import Flag
from apps.mic import flags as mic
from apps.nmi import flags as nmi
from podidentity_azure.cloud import _VARIABLES, _AzureJson
from podidentity_core.reasons import Reason
from tests.docs.tables import DOCS, PROJECT, TABLES, flag_table, reason_table, refreshed, replaced

PAGES = sorted((PROJECT / "README.md", PROJECT / "CHANGELOG.md", *PROJECT.glob("tutorial/*.md"), *DOCS.rglob("*.md")))
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
NAMED_PATH = re.compile(r"`((?:podidentity_\w+|apps|deploy|tests|docs|tutorial)/[\w./-]*\w)`")


def _links(page: Path) -> Iterator[str]:
    return (found[1] for found in LINK.finditer(CODE.sub("", page.read_text(encoding="utf-8"))))


def _anchors(page: Path) -> set[str]:
    """The anchors that a forge makes of a page's headings."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _broken(page: Path) -> list[str]:
    broken = []
    for link in _links(page):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", TABLES)
def test_the_tables_say_what_the_code_does(page: str) -> None:
    written = (DOCS / page).read_text(encoding="utf-8")

    assert written == refreshed(page), "write them anew: python -m tests.docs.tables"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert _broken(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A heading, twice\n")
    page = tmp_path / "page.md"
    page.write_text("[a](there.md#a-heading-twice) [b](there.md#no) [c](not-there.md) `[d](code.md)` [e](#nowhere)\n")

    assert _broken(page) == ["there.md#no", "not-there.md", "#nowhere"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_files_that_are_named_exist(page: Path) -> None:
    named = {found[1] for found in NAMED_PATH.finditer(page.read_text(encoding="utf-8"))}

    assert [path for path in sorted(named) if not (PROJECT / path).exists()] == []


@pytest.mark.parametrize("reason", Reason)
def test_each_reason_is_explained(reason: Reason) -> None:
    (row,) = [line for line in reason_table().splitlines() if line.startswith(f"| {reason.code} |")]

    assert reason.remedy in row
    assert all(part in row for part in re.split(r"\{\w+\}", reason.sentence))


@pytest.mark.parametrize("flags", [mic.FLAGS, nmi.FLAGS], ids=["mic", "nmi"])
def test_each_flag_is_listed_with_its_default(flags: list[Flag]) -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `--([\w-]+)` \|", page, re.MULTILINE))

    assert {flag.name for flag in flags} <= listed
    assert listed <= {flag.name for flag in (*mic.FLAGS, *nmi.FLAGS)}


def test_a_flag_without_effect_says_so() -> None:
    table = flag_table([Flag("x", "duration", 90.0, "a | b"), Flag("y", "bool", False, "c", effect=False)])

    assert table.splitlines()[2:] == [
        "| `--x` | duration | `90s` | a \\| b |",
        "| `--y` | bool | `false` | c (no effect) |",
    ]


@pytest.mark.parametrize("key", [field.alias or name for name, field in _AzureJson.model_fields.items()])
def test_each_key_of_azure_json_is_listed(key: str) -> None:
    assert f"| `{key}` |" in (DOCS / "configuration.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("variable", [*_VARIABLES.values(), "USE_MSI"])
def test_each_variable_that_stands_for_azure_json_is_listed(variable: str) -> None:
    assert f"`{variable}` |" in (DOCS / "configuration.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["no place", "<!-- begin t -->\n<!-- end t -->\n" * 2])
def test_a_table_needs_exactly_one_place(text: str) -> None:
    with pytest.raises(ValueError, match="places for the table 't'"):
        replaced(text, "t", "table\n")


def test_each_decision_has_its_number_once() -> None:
    numbers = [page.name[:4] for page in sorted((DOCS / "decisions").glob("*.md"))]

    assert numbers == [f"{number:04d}" for number in range(1, len(numbers) + 1)]

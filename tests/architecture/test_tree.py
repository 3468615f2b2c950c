"""What no file of the project may contain."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
MADE = {".venv", ".git", ".cache", ".mypy_cache", ".ruff_cache", ".pytest_cache", "__pycache__", "build", "dist"}
"""Folders that tools make; nothing in them is the project's."""
MACHINE_PATH = re.compile(rb"(?<![\w.-])/(?:work|root|home/\w+|Users/\w+)(?![\w-])")


def _files() -> Iterator[Path]:
    for folder, below, names in os.walk(PROJECT):
        below[:] = [name for name in below if name not in MADE and not name.endswith(".egg-info")]
        yield from (Path(folder, name) for name in names)


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    found = [
        f"{path.relative_to(PROJECT)}: {match.group().decode()}"
        for path in _files()
        for match in MACHINE_PATH.finditer(path.read_bytes())
    ]

    assert found == []


@pytest.mark.parametrize("place", ["work/main", "root/x", "home/jane/code", "Users/jane"])
def test_a_path_of_somebodys_machine_is_found(place: str) -> None:
    assert MACHINE_PATH.search(f"see '/{place}'".encode())


@pytest.mark.parametrize("text", ["network/root", "/rooted", "https://host.example/homework", "/homes"])
def test_other_paths_are_not_reported(text: str) -> None:
    assert not MACHINE_PATH.search(text.encode())

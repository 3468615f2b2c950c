"""The order of the tests: four files run at a time, and none that takes long should be the last to begin."""

import pytest

LONGEST_FIRST = (
    "test_mic_failures.py",
    "test_takeover.py",
    "test_running.py",
    "test_manifests.py",
    "test_bad_input.py",
    "test_hosts.py",
    "test_hostile.py",
    "test_demo.py",
    "test_assignment.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; the others keep their order."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))

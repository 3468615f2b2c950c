"""What every EventSink must do.

Subclass the contract, name the subclass `Test...`, and override its fixtures; each test is a sentence of the contract.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import pytest

from podidentity_core.ports import Event, EventSink, Severity
from podidentity_core.testing import builders


class EventSinkContract:
    """The contract of `EventSink`."""

    @pytest.fixture
    def sink(self) -> EventSink:
        """Override: the sink."""
        raise NotImplementedError

    @pytest.fixture
    def delivered(self) -> Callable[[], Awaitable[Mapping[Event, int]]]:
        """Override: wait until all is delivered, and tell what has arrived, and how often."""
        raise NotImplementedError

    async def test_events_arrive_and_repeated_ones_are_counted(
        self, sink: EventSink, delivered: Callable[[], Awaitable[Mapping[Event, int]]]
    ) -> None:
        about = builders.binding()
        applied = Event(type(about), about.key, about.uid, Severity.NORMAL, "binding applied", "Binding web applied")
        failed = replace(applied, severity=Severity.WARNING, reason="binding apply error")

        for event in (applied, failed, applied, applied):
            sink.publish(event)

        assert await delivered() == {applied: 3, failed: 1}

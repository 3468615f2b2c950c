"""Adapters in memory that behave as the real ones do, keep what was asked of them, and fail on request."""

from podidentity_core.testing.fakes.azure import FakeHosts, FakeTokens, HostWrite, TokenCall
from podidentity_core.testing.fakes.cluster import Call, FakeCluster, FakeEvents, FakeLeaderLock
from podidentity_core.testing.fakes.meter import FakeMeter
from podidentity_core.testing.fakes.secrets import FakeSecrets

__all__ = [
    "Call",
    "FakeCluster",
    "FakeEvents",
    "FakeHosts",
    "FakeLeaderLock",
    "FakeMeter",
    "FakeSecrets",
    "FakeTokens",
    "HostWrite",
    "TokenCall",
]

"""The contracts of the ports, as pytest classes: fakes and real adapters pass the same ones, and so can others'."""

from podidentity_core.testing.contracts.assignments import AssignmentStoreContract
from podidentity_core.testing.contracts.azure import (
    HostIdentitiesContract,
    HostWorld,
    NodeTokenSourceContract,
    NodeTokenWorld,
    TokenSourceContract,
    TokenWorld,
)
from podidentity_core.testing.contracts.cluster import ClusterReaderContract, ClusterWorld
from podidentity_core.testing.contracts.events import EventSinkContract
from podidentity_core.testing.contracts.leader import LeaderLockContract
from podidentity_core.testing.contracts.pods import PodReaderContract, PodWorld
from podidentity_core.testing.contracts.secrets import SecretReaderContract, SecretWorld

__all__ = [
    "AssignmentStoreContract",
    "ClusterReaderContract",
    "ClusterWorld",
    "EventSinkContract",
    "HostIdentitiesContract",
    "HostWorld",
    "LeaderLockContract",
    "NodeTokenSourceContract",
    "NodeTokenWorld",
    "PodReaderContract",
    "PodWorld",
    "SecretReaderContract",
    "SecretWorld",
    "TokenSourceContract",
    "TokenWorld",
]

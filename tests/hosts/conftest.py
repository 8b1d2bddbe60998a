"""Three hosts (network namespaces) for each test, and the programs that run on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.network import Network, network, unavailable_reason
from tests.integration.conftest import programs

__all__ = ["hosts", "programs"]


@pytest.fixture(scope="session")
def permitted() -> None:
    """Skip, with the reason, where network namespaces cannot be created."""
    if (reason := unavailable_reason()) is not None:
        pytest.skip(reason)


@pytest.fixture
def hosts(permitted: None, tmp_path: Path) -> Iterator[Network]:
    """The hosts of a broker, a worker and a client."""
    with network(tmp_path) as created:
        yield created

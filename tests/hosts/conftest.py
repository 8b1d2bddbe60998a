"""Three hosts for each test, and programs that run on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.network import Network, network, why_not
from tests.integration.conftest import programs

__all__ = ["hosts", "programs"]


@pytest.fixture(scope="session")
def permitted() -> None:
    """Skip where the machine lets nobody make hosts, with what it says."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)


@pytest.fixture
def hosts(permitted: None, tmp_path: Path) -> Iterator[Network]:
    """A broker's host, a worker's and a client's."""
    with network(tmp_path) as made:
        yield made

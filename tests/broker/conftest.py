"""Fixtures of the tests of the broker."""

import pytest

from tests.broker.harness import CLIENT, OPEN_SESSION, WORKER, BrokerHarness, register


@pytest.fixture
def harness() -> BrokerHarness:
    """A broker with one open client session and one registered worker of capacity 1."""
    harness = BrokerHarness()
    harness.send(CLIENT, OPEN_SESSION)
    harness.send(WORKER, register())
    return harness

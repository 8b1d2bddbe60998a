"""What the tests of the broker share."""

import pytest

from tests.broker.harness import CLIENT, GREETING, WORKER, Room, register


@pytest.fixture
def room() -> Room:
    """A client and a worker of capacity 1, greeted."""
    room = Room()
    room.says(CLIENT, GREETING)
    room.says(WORKER, register())
    return room

"""What one peer can make the broker hold or say is bounded, and nobody else is the worse for it."""

from collections.abc import Callable

import pytest

from birdie_zmq.broker.events import Received, Unreadable, Unsendable
from birdie_zmq.broker.rate_limits import LogLimiter, RefusalLimiter
from birdie_zmq.errors import MalformedMessage, MessageTooLarge, ProtocolError, UnknownPeer
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import MAX_FRAME_BYTES, MAX_TEXT_BYTES
from birdie_zmq.settings import BrokerSettings, ClientSettings
from birdie_zmq.types import ErrorReport
from tests.broker.harness import CLIENT, GREETING, OTHER_CLIENT, WORKER, Room, finish, register, submit

GARBAGE = MalformedMessage("no message")
SETTINGS = BrokerSettings(max_bytes_per_client=100, max_refusals_in_a_row=3)


@pytest.fixture
def tight() -> Room:
    """Two clients, no worker, and room for 100 bytes a client."""
    room = Room(SETTINGS)
    room.says(CLIENT, GREETING)
    room.says(OTHER_CLIENT, GREETING)
    return room


def sends(room: Room, batch: int, size_bytes: int, client: bytes = CLIENT) -> None:
    room.happens(Received(client, submit(batch), size_bytes))


# --- Bytes -----------------------------------------------------------------------------------------------------------


def test_a_batch_beyond_the_budget_fails_with_the_numbers(tight: Room) -> None:
    sends(tight, 1, 60)
    sends(tight, 2, 41)

    number, error = tight.failed()

    assert number == 2
    assert isinstance(error, MessageTooLarge)
    assert "100 bytes at once" in error.message
    assert "41 bytes came when 60" in error.message


def test_a_budget_may_be_used_up(tight: Room) -> None:
    sends(tight, 1, 60)
    sends(tight, 2, 40)
    assert not tight.hears(CLIENT, m.BatchFailed)


def test_each_client_has_a_budget_of_its_own(tight: Room) -> None:
    sends(tight, 1, 100)
    sends(tight, 1, 100, OTHER_CLIENT)
    assert not tight.hears(OTHER_CLIENT, m.BatchFailed)


def test_a_batch_that_is_handed_out_still_counts(tight: Room) -> None:
    tight.says(WORKER, register())
    sends(tight, 1, 100)
    tight.lease()
    sends(tight, 2, 1)
    assert tight.failed()[0] == 2


def answered(room: Room) -> None:
    room.says(WORKER, *finish(room.lease()))


def failed(room: Room) -> None:
    error = ErrorReport(code="model", message="boom")
    room.says(WORKER, m.LeaseFailed(lease=room.lease().lease, error=error))
    room.failed()


def refused_its_item(room: Room) -> None:
    error = ErrorReport(code="model", message="boom")
    room.says(WORKER, m.LeaseFailed(lease=room.lease().lease, error=error, index=0))


def greeted_again(room: Room) -> None:
    room.says(CLIENT, GREETING)


@pytest.mark.parametrize("settle", [answered, failed, refused_its_item, greeted_again])
def test_what_is_settled_counts_no_more(tight: Room, settle: Callable[[Room], None]) -> None:
    tight.says(WORKER, register())
    sends(tight, 1, 100)
    settle(tight)
    sends(tight, 2, 100)
    assert not tight.hears(CLIENT, m.BatchFailed)


def test_a_batch_without_items_is_not_kept(tight: Room) -> None:
    for batch in range(1_000):
        tight.happens(Received(CLIENT, submit(batch, texts=""), 60))
    assert len(tight.hears(CLIENT, m.BatchFailed)) == 1_000
    assert not len(tight.broker._queues)


def test_an_honest_client_is_within_the_budget() -> None:
    """Its window of the largest messages that there are; and what its batches are is far below that."""
    client, broker = ClientSettings(), BrokerSettings()
    assert client.window * MAX_FRAME_BYTES <= broker.max_bytes_per_client
    assert client.window <= broker.max_batches_per_client
    assert 4 * client.batch_characters <= MAX_TEXT_BYTES


def test_a_lease_that_no_frame_can_hold_fails_its_batch_and_frees_its_worker(tight: Room) -> None:
    tight.says(WORKER, register())
    sends(tight, 1, 60)
    lease = tight.lease()

    tight.happens(Unsendable(WORKER, lease, MessageTooLarge("a Lease of 64 MiB and a bit")))

    number, error = tight.failed()
    assert (number, type(error)) == (1, MessageTooLarge)
    sends(tight, 2, 60)
    assert len(tight.leases()) == 1


def test_what_no_frame_can_hold_is_told_to_whom_it_was_for(tight: Room) -> None:
    tight.happens(Unsendable(CLIENT, m.Pong(workers=1), MessageTooLarge("large")))
    assert tight.refused(CLIENT) is MessageTooLarge


# --- What makes no sense ---------------------------------------------------------------------------------------------


def garbage(room: Room, peer: bytes, times: int) -> int:
    """Send garbage so often; how many refusals come back."""
    for _ in range(times):
        room.happens(Unreadable(peer, GARBAGE))
    return len(room.hears(peer, m.Refusal))


def test_a_flood_of_garbage_gets_no_flood_of_answers(tight: Room) -> None:
    assert garbage(tight, b"stranger", 1_000) == 3
    tight.passes(1)
    assert garbage(tight, b"stranger", 1_000) == 1


def test_a_flood_of_garbage_is_one_line_a_second_that_counts(tight: Room) -> None:
    for _ in range(10):
        garbage(tight, b"stranger", 1_000)
        tight.now += 1

    assert len(tight.logged) == 10
    assert "and 999 lines before it" in tight.logged[-1]
    tight.passes(1)
    assert "999 more lines" in tight.logged[-1]
    tight.passes(1)
    assert len(tight.logged) == 11


def test_what_a_peer_may_not_send_counts_like_garbage(tight: Room) -> None:
    for _ in range(1_000):
        tight.says(CLIENT, m.LeaseDone(lease=1))
    assert [refusal.error.code for refusal in tight.hears(CLIENT, m.Refusal)] == [ProtocolError.code] * 3


def test_a_message_that_makes_sense_ends_the_row(tight: Room) -> None:
    assert garbage(tight, CLIENT, 10) == 3
    tight.says(CLIENT, m.Ping())
    assert garbage(tight, CLIENT, 10) == 3


def test_others_are_answered_while_one_floods(tight: Room) -> None:
    garbage(tight, b"stranger", 1_000)
    tight.says(CLIENT, m.Ping())
    assert len(tight.hears(CLIENT, m.Pong)) == 1
    assert garbage(tight, OTHER_CLIENT, 1) == 1


def test_whoever_outlived_the_broker_hears_of_it_whatever_it_sent_before(tight: Room) -> None:
    """A worker that was answering a large batch: all its words cross with the broker's restart, and one is answered late."""
    for lease in range(500):
        tight.says(WORKER, m.LeaseDone(lease=lease))
    assert {refusal.error.code for refusal in tight.hears(WORKER, m.Refusal)} == {UnknownPeer.code}
    tight.passes(1)
    tight.says(WORKER, m.Heartbeat(phase="running"))
    assert tight.refused(WORKER) is UnknownPeer
    tight.says(WORKER, register())
    assert len(tight.hears(WORKER, m.WorkerRegistered)) == 1


def test_peers_without_end_are_not_remembered() -> None:
    refusals = RefusalLimiter(3)
    for number in range(100_000):
        assert refusals.tells(b"%d" % number, 0.0)
    assert len(refusals._senders) < 10_000


# --- The log ---------------------------------------------------------------------------------------------------------


def test_a_peer_that_comes_and_goes_does_not_fill_the_log(tight: Room) -> None:
    for _ in range(10_000):
        tight.says(WORKER, register())
    assert len(tight.logged) == tight.settings.max_log_lines_at_once
    tight.passes(1)
    assert "lines were not written" in tight.logged[-1]


def test_a_name_makes_no_second_line_and_nothing_for_a_terminal(tight: Room) -> None:
    forged = "here\n12:00:00 WARNING all is lost\x1b[2J" + "x" * 4_000
    registration = m.RegisterWorker(package_version="1", engine="jax", host=forged, process_id=7, capacity=1)
    tight.says(WORKER, registration)
    (line,) = tight.logged
    assert line.isprintable()
    assert len(line) < 600


def test_lines_come_back_with_time() -> None:
    lines = LogLimiter(at_once=2, per_s=1.0)
    assert [lines.write("a", 5.0) for _ in range(3)] == ["a", "a", None]
    assert lines.rest(5.5) is None
    assert lines.rest(6.0) == "1 more lines were not written"
    assert lines.write("a", 6.5) is None
    assert lines.write("a", 7.5) == "a (and 1 lines before it that were not written)"

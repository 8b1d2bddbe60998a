"""Limits on the memory, refusals and log lines that one peer can cause, without effect on other peers."""

from collections.abc import Callable

import pytest

from birdie_zmq.broker.events import Received, Unreadable, Unsendable
from birdie_zmq.broker.rate_limits import LogLimiter, RefusalLimiter
from birdie_zmq.errors import MalformedMessage, MessageTooLarge, ProtocolError, UnknownPeer
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.limits import MAX_FRAME_BYTES, MAX_TEXT_BYTES
from birdie_zmq.settings import BrokerSettings, ClientSettings
from birdie_zmq.types import ErrorReport
from tests.broker.harness import CLIENT, OPEN_SESSION, OTHER_CLIENT, WORKER, BrokerHarness, finish, register, submit

GARBAGE = MalformedMessage("no message")
SETTINGS = BrokerSettings(max_bytes_per_client=100, max_refusal_burst=3)


@pytest.fixture
def limited() -> BrokerHarness:
    """Two clients, no worker, and a limit of 100 bytes of unanswered batches per client."""
    harness = BrokerHarness(SETTINGS)
    harness.send(CLIENT, OPEN_SESSION)
    harness.send(OTHER_CLIENT, OPEN_SESSION)
    return harness


def submit_bytes(harness: BrokerHarness, batch: int, size_bytes: int, client: bytes = CLIENT) -> None:
    harness.handle(Received(client, submit(batch), size_bytes))


# --- Bytes of unanswered batches --------------------------------------------------------------------------------------


def test_a_batch_over_the_byte_limit_fails_with_the_numbers(limited: BrokerHarness) -> None:
    submit_bytes(limited, 1, 60)
    submit_bytes(limited, 2, 41)

    number, error = limited.batch_failure()

    assert number == 2
    assert isinstance(error, MessageTooLarge)
    assert "at most 100 bytes" in error.message
    assert "41 bytes, and 60 are unanswered" in error.message


def test_a_batch_may_use_the_whole_byte_limit(limited: BrokerHarness) -> None:
    submit_bytes(limited, 1, 60)
    submit_bytes(limited, 2, 40)
    assert not limited.received(CLIENT, m.BatchFailed)


def test_each_client_has_its_own_byte_limit(limited: BrokerHarness) -> None:
    submit_bytes(limited, 1, 100)
    submit_bytes(limited, 1, 100, OTHER_CLIENT)
    assert not limited.received(OTHER_CLIENT, m.BatchFailed)


def test_a_leased_batch_still_counts_towards_the_byte_limit(limited: BrokerHarness) -> None:
    limited.send(WORKER, register())
    submit_bytes(limited, 1, 100)
    limited.lease()
    submit_bytes(limited, 2, 1)
    assert limited.batch_failure()[0] == 2


def batch_answered(harness: BrokerHarness) -> None:
    harness.send(WORKER, *finish(harness.lease()))


def batch_failed(harness: BrokerHarness) -> None:
    error = ErrorReport(code="model", message="boom")
    harness.send(WORKER, m.LeaseFailed(lease=harness.lease().lease, error=error))
    harness.batch_failure()


def item_failed(harness: BrokerHarness) -> None:
    error = ErrorReport(code="model", message="boom")
    harness.send(WORKER, m.LeaseFailed(lease=harness.lease().lease, error=error, index=0))


def session_reopened(harness: BrokerHarness) -> None:
    harness.send(CLIENT, OPEN_SESSION)


@pytest.mark.parametrize("settle", [batch_answered, batch_failed, item_failed, session_reopened])
def test_a_settled_batch_no_longer_counts_towards_the_byte_limit(
    limited: BrokerHarness, settle: Callable[[BrokerHarness], None]
) -> None:
    limited.send(WORKER, register())
    submit_bytes(limited, 1, 100)
    settle(limited)
    submit_bytes(limited, 2, 100)
    assert not limited.received(CLIENT, m.BatchFailed)


def test_a_batch_without_items_is_rejected(limited: BrokerHarness) -> None:
    for batch in range(1_000):
        limited.handle(Received(CLIENT, submit(batch, texts=""), 60))
    assert len(limited.received(CLIENT, m.BatchFailed)) == 1_000
    assert not len(limited.broker._scheduler)


def test_the_default_client_stays_within_the_limits() -> None:
    """A window of batches with the largest possible size stays within the limits, and real batches are far smaller."""
    client, broker = ClientSettings(), BrokerSettings()
    assert client.window * MAX_FRAME_BYTES <= broker.max_bytes_per_client
    assert client.window <= broker.max_batches_per_client
    assert 4 * client.batch_characters <= MAX_TEXT_BYTES


def test_a_lease_over_the_frame_limit_fails_its_batch_and_frees_its_worker(limited: BrokerHarness) -> None:
    limited.send(WORKER, register())
    submit_bytes(limited, 1, 60)
    lease = limited.lease()

    limited.handle(Unsendable(WORKER, lease, MessageTooLarge("a Lease of 64 MiB and a bit")))

    number, error = limited.batch_failure()
    assert (number, type(error)) == (1, MessageTooLarge)
    submit_bytes(limited, 2, 60)
    assert len(limited.leases()) == 1


def test_a_message_over_the_frame_limit_is_reported_to_its_recipient(limited: BrokerHarness) -> None:
    limited.handle(Unsendable(CLIENT, m.Pong(workers=1), MessageTooLarge("large")))
    assert limited.refusal_type(CLIENT) is MessageTooLarge


# --- Refusals ---------------------------------------------------------------------------------------------------------


def send_garbage(harness: BrokerHarness, peer: bytes, times: int) -> int:
    """Send garbage a number of times, and return the number of refusals."""
    for _ in range(times):
        harness.handle(Unreadable(peer, GARBAGE))
    return len(harness.received(peer, m.Refusal))


def test_a_flood_of_garbage_gets_few_refusals(limited: BrokerHarness) -> None:
    assert send_garbage(limited, b"stranger", 1_000) == 3
    limited.advance(1)
    assert send_garbage(limited, b"stranger", 1_000) == 1


def test_a_flood_of_garbage_is_one_log_line_a_second_with_a_count(limited: BrokerHarness) -> None:
    for _ in range(10):
        send_garbage(limited, b"stranger", 1_000)
        limited.now += 1

    assert len(limited.log_lines) == 10
    assert "suppressed 999 lines before it" in limited.log_lines[-1]
    limited.advance(1)
    assert "suppressed 999 more lines" in limited.log_lines[-1]
    limited.advance(1)
    assert len(limited.log_lines) == 11


def test_messages_of_another_role_are_limited_like_garbage(limited: BrokerHarness) -> None:
    for _ in range(1_000):
        limited.send(CLIENT, m.LeaseDone(lease=1))
    assert [refusal.error.code for refusal in limited.received(CLIENT, m.Refusal)] == [ProtocolError.code] * 3


def test_a_valid_message_resets_the_refusal_limit(limited: BrokerHarness) -> None:
    assert send_garbage(limited, CLIENT, 10) == 3
    limited.send(CLIENT, m.Ping())
    assert send_garbage(limited, CLIENT, 10) == 3


def test_other_peers_are_answered_during_a_flood(limited: BrokerHarness) -> None:
    send_garbage(limited, b"stranger", 1_000)
    limited.send(CLIENT, m.Ping())
    assert len(limited.received(CLIENT, m.Pong)) == 1
    assert send_garbage(limited, OTHER_CLIENT, 1) == 1


def test_a_worker_learns_of_a_restarted_broker_despite_the_limit(limited: BrokerHarness) -> None:
    """Many answers of a worker cross with the restart of the broker; a later message still gets a refusal."""
    for lease in range(500):
        limited.send(WORKER, m.LeaseDone(lease=lease))
    assert {refusal.error.code for refusal in limited.received(WORKER, m.Refusal)} == {UnknownPeer.code}
    limited.advance(1)
    limited.send(WORKER, m.Heartbeat(phase="running"))
    assert limited.refusal_type(WORKER) is UnknownPeer
    limited.send(WORKER, register())
    assert len(limited.received(WORKER, m.WorkerRegistered)) == 1


def test_the_number_of_limited_peers_is_bounded() -> None:
    limiter = RefusalLimiter(3)
    for number in range(100_000):
        assert limiter.allow(b"%d" % number, 0.0)
    assert len(limiter._peers) < 10_000


# --- The log ----------------------------------------------------------------------------------------------------------


def test_a_reconnecting_peer_does_not_fill_the_log(limited: BrokerHarness) -> None:
    for _ in range(10_000):
        limited.send(WORKER, register())
    assert len(limited.log_lines) == limited.settings.max_log_burst
    limited.advance(1)
    assert "suppressed" in limited.log_lines[-1]


def test_a_host_name_cannot_forge_log_lines_or_control_the_terminal(limited: BrokerHarness) -> None:
    forged = "here\n12:00:00 WARNING all is lost\x1b[2J" + "x" * 4_000
    registration = m.RegisterWorker(package_version="1", engine="jax", host=forged, process_id=7, capacity=1)
    limited.send(WORKER, registration)
    (line,) = limited.log_lines
    assert line.isprintable()
    assert len(line) < 600


def test_log_lines_are_admitted_again_after_a_while() -> None:
    limiter = LogLimiter(burst=2, per_s=1.0)
    assert [limiter.admit("a", 5.0) for _ in range(3)] == ["a", "a", None]
    assert limiter.suppressed(5.5) is None
    assert limiter.suppressed(6.0) == "suppressed 1 more lines"
    assert limiter.admit("a", 6.5) is None
    assert limiter.admit("a", 7.5) == "a (suppressed 1 lines before it)"

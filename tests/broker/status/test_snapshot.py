"""The status of a broker as a record of plain values."""

import msgspec

from birdie_zmq.broker.status.snapshot import MAX_ROWS, About, Status, snapshot
from birdie_zmq.protocol import messages as m
from birdie_zmq.types import ComputeCounters, ModelSpec
from tests.broker.harness import (
    CLIENT,
    OPEN_SESSION,
    OTHER_CLIENT,
    WORKER,
    A,
    B,
    BrokerHarness,
    answer,
    crash,
    fail,
    finish,
    rolling,
    submit,
)

ABOUT = About("1.0", "tcp://127.0.0.1:5555", 7, 900.0)


def status_of(harness: BrokerHarness) -> Status:
    return snapshot(harness.broker, ABOUT, harness.now)


def test_the_status_of_an_empty_broker_is_empty() -> None:
    status = status_of(BrokerHarness())
    assert (status.workers, status.models, status.clients, status.history) == ((), (), (), ())
    assert status.uptime_s == 100.0


def test_a_batch_is_counted_as_waiting_then_leased_then_answered(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, A, "xyz"), submit(2, A, "x"), submit(3, B, "xx"))
    lease = harness.lease()
    status = status_of(harness)
    assert (status.batches_waiting, status.batches_leased) == (2, 1)
    a, b = sorted(status.models, key=lambda model: model.model)
    assert (a.model, a.batches_waiting, a.requests_waiting, a.requests_leased, a.workers) == ("A", 1, 1, 3, 1)
    assert (b.model, b.batches_waiting, b.requests_waiting, b.requests_leased, b.workers) == ("B", 1, 2, 0, 0)

    harness.send(WORKER, answer(lease, 0))
    (worker,) = status_of(harness).workers
    assert (worker.requests_answered, worker.requests_leased, worker.leases) == (1, 2, 1)
    assert status_of(harness).totals.batches_answered == 0

    harness.send(WORKER, answer(lease, 1, 2), m.LeaseDone(lease=lease.lease))
    status = status_of(harness)
    assert (status.totals.requests_answered, status.totals.batches_answered) == (3, 1)
    (client,) = status.clients
    assert (client.requests_answered, client.requests_left, client.batches_waiting) == (3, 3, 1)


def test_the_age_of_the_oldest_waiting_batch_is_shown(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1), submit(2))
    harness.advance(2.0)
    (model,) = status_of(harness).models
    assert model.oldest_s == 2.0


def test_a_ready_worker_is_running_with_leases_and_idle_without(harness: BrokerHarness) -> None:
    heartbeat = m.Heartbeat(phase="ready", model=A)
    harness.send(WORKER, heartbeat)
    harness.advance(0.5)
    harness.advance(1.0)
    (worker,) = status_of(harness).workers
    assert (worker.phase, worker.phase_s) == ("idle", 1.0)
    harness.send(CLIENT, submit(1))
    harness.advance(0.5)
    assert status_of(harness).workers[0].phase == "running"
    harness.send(WORKER, m.Heartbeat(phase="compiling 4 x 128", model=A))
    harness.advance(0.5)
    assert status_of(harness).workers[0].phase == "compiling 4 x 128"


def test_the_counters_of_workers_are_added_up(harness: BrokerHarness) -> None:
    for tokens in (10, 30):
        harness.send(
            WORKER, m.Heartbeat(phase="running", computed=ComputeCounters(tokens=tokens, padding=tokens // 10))
        )
    status = status_of(harness)
    assert (status.totals.tokens_computed, status.workers[0].tokens_computed) == (20, 30)


def test_crashes_and_failures_name_code_and_model_but_no_message(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, A, "x"))
    harness.send(WORKER, crash(harness.lease()))
    harness.send(WORKER, fail(harness.lease()))
    harness.advance(3.0)
    status = status_of(harness)
    assert [(each.kind, each.text, each.ago_s) for each in status.history] == [
        ("failed", "model-call, A", 3.0),
        ("crashed", "model-process-died, while computing A", 3.0),
    ]
    assert (status.totals.retries, status.totals.requests_failed) == (1, 1)
    assert b"boom" not in msgspec.json.encode(status)


def test_no_text_of_a_request_or_an_answer_is_shown(harness: BrokerHarness) -> None:
    secret = "the-launch-code"
    work = rolling(secret)
    harness.send(CLIENT, m.Submit(batch=1, model=A, work=work), m.Submit(batch=2, model=A, work=work))
    assert secret.encode() not in msgspec.json.encode(status_of(harness))
    harness.send(WORKER, *finish(harness.lease()))
    assert secret.upper().encode() not in msgspec.json.encode(status_of(harness))


def test_the_size_of_the_status_is_bounded(harness: BrokerHarness) -> None:
    for number in range(3 * MAX_ROWS):
        peer = str(number).encode()
        host = f"{number}\n" + "\N{PILE OF POO}" * 4_000
        harness.send(peer, m.RegisterWorker(package_version="1", engine=host, host=host, process_id=1, capacity=1))
        harness.send(
            b"c" + peer, OPEN_SESSION, submit(1, ModelSpec(tag=host, arguments='{"a": "' + "x" * 10_000 + '"}'))
        )
    status = status_of(harness)
    assert (status.workers_connected, status.clients_connected) == (3 * MAX_ROWS + 1, 3 * MAX_ROWS + 1)
    assert len(status.workers) == len(status.clients) == len(status.models) == MAX_ROWS
    assert all("\n" not in worker.host for worker in status.workers)
    assert len(msgspec.json.encode(status)) < 1_000_000


def test_clients_with_unanswered_batches_come_first(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1))
    for number in range(MAX_ROWS):
        harness.send(OTHER_CLIENT + str(number).encode(), OPEN_SESSION)
    assert status_of(harness).clients[0].requests_left == 1


def test_a_snapshot_survives_a_json_round_trip(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1))
    status = status_of(harness)
    decoded = msgspec.json.decode(msgspec.json.encode(status), type=Status)
    assert msgspec.json.encode(decoded) == msgspec.json.encode(status)

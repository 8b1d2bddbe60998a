"""The snapshot of a broker: a record of plain values, from its state and the time."""

import msgspec

from birdie_zmq.broker.status.snapshot import MOST_ROWS, About, Status, snapshot
from birdie_zmq.protocol import messages as m
from birdie_zmq.types import ComputeCounters, ModelSpec, RollingWork
from tests.broker.harness import CLIENT, GREETING, OTHER_CLIENT, WORKER, A, B, Room, answer, crash, fail, finish, submit

ABOUT = About("1.0", "tcp://127.0.0.1:5555", 7, 900.0)


def look(room: Room) -> Status:
    return snapshot(room.broker, ABOUT, room.now)


def test_an_empty_broker_has_nothing_to_show() -> None:
    status = look(Room())
    assert (status.workers, status.models, status.clients, status.happenings) == ((), (), (), ())
    assert status.uptime_s == 100.0


def test_a_batch_is_waited_for_then_leased_then_answered(room: Room) -> None:
    room.says(CLIENT, submit(1, A, "xyz"), submit(2, A, "x"), submit(3, B, "xx"))
    lease = room.lease()
    status = look(room)
    assert (status.batches_waiting, status.batches_leased) == (2, 1)
    a, b = sorted(status.models, key=lambda model: model.model)
    assert (a.model, a.batches_waiting, a.requests_waiting, a.requests_leased, a.workers) == ("A", 1, 1, 3, 1)
    assert (b.model, b.batches_waiting, b.requests_waiting, b.requests_leased, b.workers) == ("B", 1, 2, 0, 0)

    room.says(WORKER, answer(lease, 0))
    (worker,) = look(room).workers
    assert (worker.requests_answered, worker.requests_held, worker.leases) == (1, 2, 1)
    assert look(room).totals.batches_answered == 0

    room.says(WORKER, answer(lease, 1, 2), m.LeaseDone(lease=lease.lease))
    status = look(room)
    assert (status.totals.requests_answered, status.totals.batches_answered) == (3, 1)
    (client,) = status.clients
    assert (client.requests_answered, client.requests_left, client.batches_waiting) == (3, 3, 1)


def test_what_waits_is_told_with_its_age(room: Room) -> None:
    room.says(CLIENT, submit(1), submit(2))
    room.passes(2.0)
    (model,) = look(room).models
    assert model.oldest_s == 2.0


def test_a_process_that_is_ready_runs_or_idles_as_its_leases_say(room: Room) -> None:
    beat = m.Heartbeat(phase="ready", model=A)
    room.says(WORKER, beat)
    room.passes(0.5)
    room.passes(1.0)
    (worker,) = look(room).workers
    assert (worker.phase, worker.phase_s) == ("idle", 1.0)
    room.says(CLIENT, submit(1))
    room.passes(0.5)
    assert look(room).workers[0].phase == "running"
    room.says(WORKER, m.Heartbeat(phase="compiling 4 x 128", model=A))
    room.passes(0.5)
    assert look(room).workers[0].phase == "compiling 4 x 128"


def test_what_workers_say_they_compute_is_added_up(room: Room) -> None:
    for tokens in (10, 30):
        room.says(WORKER, m.Heartbeat(phase="running", computed=ComputeCounters(tokens=tokens, padding=tokens // 10)))
    status = look(room)
    assert (status.totals.tokens_computed, status.workers[0].tokens_computed) == (20, 30)


def test_losses_and_failures_name_code_and_model_but_no_text(room: Room) -> None:
    room.says(CLIENT, submit(1, A, "x"))
    room.says(WORKER, crash(room.lease()))
    room.says(WORKER, fail(room.lease()))
    room.passes(3.0)
    status = look(room)
    assert [(each.kind, each.text, each.ago_s) for each in status.happenings] == [
        ("failed", "model-call, A", 3.0),
        ("lost", "model-process-died, at work on A", 3.0),
    ]
    assert (status.totals.losses, status.totals.requests_failed) == (1, 1)
    assert b"boom" not in msgspec.json.encode(status)


def test_no_text_of_a_request_or_an_answer_is_shown(room: Room) -> None:
    secret = "the-launch-code"
    work = RollingWork(texts=[secret])
    room.says(CLIENT, m.Submit(batch=1, model=A, work=work), m.Submit(batch=2, model=A, work=work))
    assert secret.encode() not in msgspec.json.encode(look(room))
    room.says(WORKER, *finish(room.lease()))
    assert secret.upper().encode() not in msgspec.json.encode(look(room))


def test_many_peers_with_long_names_make_no_large_page(room: Room) -> None:
    for number in range(3 * MOST_ROWS):
        peer = str(number).encode()
        host = f"{number}\n" + "\N{PILE OF POO}" * 4_000
        room.says(peer, m.RegisterWorker(package_version="1", engine=host, host=host, process_id=1, capacity=1))
        room.says(b"c" + peer, GREETING, submit(1, ModelSpec(tag=host, arguments='{"a": "' + "x" * 10_000 + '"}')))
    status = look(room)
    assert (status.workers_connected, status.clients_connected) == (3 * MOST_ROWS + 1, 3 * MOST_ROWS + 1)
    assert len(status.workers) == len(status.clients) == len(status.models) == MOST_ROWS
    assert all("\n" not in worker.host for worker in status.workers)
    assert len(msgspec.json.encode(status)) < 1_000_000


def test_who_waits_is_shown_before_who_does_not(room: Room) -> None:
    room.says(CLIENT, submit(1))
    for number in range(MOST_ROWS):
        room.says(OTHER_CLIENT + str(number).encode(), GREETING)
    assert look(room).clients[0].requests_left == 1


def test_a_snapshot_comes_back_from_json(room: Room) -> None:
    room.says(CLIENT, submit(1))
    status = look(room)
    decoded = msgspec.json.decode(msgspec.json.encode(status), type=Status)
    assert msgspec.json.encode(decoded) == msgspec.json.encode(status)

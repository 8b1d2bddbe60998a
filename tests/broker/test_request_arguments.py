"""Runs whose request arguments differ, at workers that ignore these arguments and at workers that do not."""

from __future__ import annotations

import pytest

from birdie_zmq.broker.status.snapshot import About, snapshot
from birdie_zmq.protocol import messages as m
from birdie_zmq.types import REQUEST_ARGUMENTS, ModelSpec
from tests.broker.harness import (
    CLIENT,
    OPEN_SESSION,
    OTHER_CLIENT,
    OTHER_WORKER,
    WORKER,
    BrokerHarness,
    finish,
    register,
    submit,
    texts_of,
)

ONE, TWO = (ModelSpec(tag="A", request_arguments=(("seed", str(seed)),)) for seed in (1, 2))
ABOUT = About("1.0", "tcp://127.0.0.1:1", 7, 1_000.0)


@pytest.fixture
def harness() -> BrokerHarness:
    """Provide a broker with two clients."""
    harness = BrokerHarness()
    harness.send(CLIENT, OPEN_SESSION)
    harness.send(OTHER_CLIENT, OPEN_SESSION)
    return harness


def switches(harness: BrokerHarness) -> int:
    return harness.broker.history.model_switches


def test_a_worker_computes_runs_with_arguments_that_it_ignores_without_a_switch(harness: BrokerHarness) -> None:
    harness.send(WORKER, register(capacity=2, request_arguments=REQUEST_ARGUMENTS))
    harness.send(CLIENT, submit(1, ONE, "ab"))
    harness.send(OTHER_CLIENT, submit(1, TWO, "cd"))

    first, second = harness.leases()
    assert [(first.model, texts_of(first)), (second.model, texts_of(second))] == [(ONE, ["a", "b"]), (TWO, ["c", "d"])]
    harness.send(WORKER, *finish(first), *finish(second))
    assert [len(harness.received(client, m.Answered)) for client in (CLIENT, OTHER_CLIENT)] == [1, 1]
    assert switches(harness) == 0


def test_a_worker_that_ignores_nothing_switches(harness: BrokerHarness) -> None:
    harness.send(WORKER, register(capacity=2))
    harness.send(CLIENT, submit(1, ONE))
    harness.send(OTHER_CLIENT, submit(1, TWO))

    first = harness.lease()
    assert first.model == ONE
    harness.send(WORKER, *finish(first))
    assert harness.lease().model == TWO
    assert switches(harness) == 1


def test_a_worker_announces_what_its_user_module_ignores_when_that_is_loaded(harness: BrokerHarness) -> None:
    harness.send(WORKER, register(capacity=2))
    harness.send(CLIENT, submit(1, ONE))
    harness.send(OTHER_CLIENT, submit(1, TWO))
    assert harness.lease().model == ONE
    harness.send(WORKER, m.Heartbeat(phase="ready", model=ONE, request_arguments=("seed",)))

    assert harness.lease().model == TWO
    assert switches(harness) == 0


def test_each_kind_of_worker_gets_what_it_has_loaded(harness: BrokerHarness) -> None:
    harness.send(WORKER, register(capacity=2, model=ONE, request_arguments=REQUEST_ARGUMENTS))
    harness.send(OTHER_WORKER, register(capacity=2, model=TWO))
    harness.send(CLIENT, submit(1, ONE), submit(2, ONE))
    harness.send(OTHER_CLIENT, submit(1, TWO), submit(2, TWO))

    assert {lease.model for lease in harness.leases(OTHER_WORKER)} == {TWO}
    assert {lease.model for lease in harness.leases(WORKER)} >= {ONE}
    assert switches(harness) == 0


@pytest.mark.parametrize(("ignored", "steals"), [(REQUEST_ARGUMENTS, 1), (frozenset(), 0)])
def test_only_a_worker_that_serves_the_arguments_steals(
    harness: BrokerHarness, ignored: frozenset[str], steals: int
) -> None:
    harness.send(WORKER, register(capacity=2, model=TWO, request_arguments=REQUEST_ARGUMENTS))
    harness.send(CLIENT, submit(1, ONE, "abcd"))
    assert harness.lease().model == ONE
    harness.send(OTHER_WORKER, register(model=TWO, request_arguments=REQUEST_ARGUMENTS & ignored))
    for _ in range(4):
        harness.advance(harness.settings.tick_s)

    stolen = harness.leases(OTHER_WORKER)
    assert [(lease.model, texts_of(lease)) for lease in stolen] == [(ONE, ["c", "d"])] * steals
    assert switches(harness) == 0


def test_the_status_shows_one_model_where_all_workers_ignore_the_arguments(harness: BrokerHarness) -> None:
    harness.send(WORKER, register(model=TWO, request_arguments=REQUEST_ARGUMENTS))
    harness.send(CLIENT, submit(1, ONE, "ab"))
    harness.send(OTHER_CLIENT, submit(1, TWO, "c"))

    (model,) = snapshot(harness.broker, ABOUT, harness.now).models
    assert (model.model, model.requests_waiting + model.requests_leased, model.workers) == ("A", 3, 1)
    (worker,) = snapshot(harness.broker, ABOUT, harness.now).workers
    assert worker.model == "A"

    harness.send(OTHER_WORKER, register(model=TWO))
    shown = {model.model: model.workers for model in snapshot(harness.broker, ABOUT, harness.now).models}
    assert shown == {'A {"seed": 1}': 0, 'A {"seed": 2}': 2}

"""When the broker core lets a worker switch to another model."""

from itertools import pairwise

import numpy as np

from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import BrokerSettings
from birdie_zmq.types import ModelSpec
from tests.broker.harness import (
    CLIENT,
    OPEN_SESSION,
    OTHER_WORKER,
    WORKER,
    A,
    B,
    BrokerHarness,
    finish,
    register,
    submit,
)


def test_a_worker_serves_its_own_model_first(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, A), submit(2, B), submit(3, A))
    harness.send(WORKER, *finish(harness.lease()))
    assert harness.lease().model == A


def test_a_worker_switches_when_its_own_queue_is_empty(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, A), submit(2, B))
    lease = harness.lease()
    assert harness.leases() == []
    harness.send(WORKER, *finish(lease))
    assert harness.lease().model == B
    assert any("switches from A to B" in text for text in harness.log_lines)


def test_a_worker_finishes_all_its_leases_before_it_switches() -> None:
    harness = BrokerHarness()
    harness.send(WORKER, register(capacity=2))
    harness.send(CLIENT, OPEN_SESSION, submit(1, A), submit(2, A), submit(3, B))
    first, second = harness.leases()
    harness.send(WORKER, *finish(first))
    assert harness.leases() == []
    harness.send(WORKER, *finish(second))
    assert harness.lease().model == B


def test_a_model_that_has_waited_longer_than_the_switch_delay_comes_first(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, A), submit(2, B), submit(3, A))
    lease = harness.lease()
    harness.now += harness.settings.switch_delay_s + 0.1
    harness.send(WORKER, *finish(lease))
    assert harness.lease().model == B


def test_an_idle_worker_leaves_a_batch_to_a_worker_with_its_model_loaded() -> None:
    harness = BrokerHarness()
    harness.send(WORKER, register())
    harness.send(OTHER_WORKER, register())
    harness.send(CLIENT, OPEN_SESSION, submit(1, A), submit(2, B))
    harness.send(WORKER, *finish(harness.lease(WORKER)))
    harness.send(OTHER_WORKER, *finish(harness.lease(OTHER_WORKER)))
    harness.send(CLIENT, submit(3, B))
    assert harness.leases(WORKER) == []
    assert harness.lease(OTHER_WORKER).model == B


def test_two_filled_queues_take_turns_with_one_switch_per_switch_delay() -> None:
    harness = BrokerHarness(BrokerSettings(switch_delay_s=30.0, max_batches_per_client=10_000))
    harness.send(WORKER, register(capacity=2))
    harness.send(CLIENT, OPEN_SESSION)
    open_leases: list[m.Lease] = []
    served_models: list[tuple[float, ModelSpec]] = []
    number = 0
    for _ in range(600):
        harness.now += 1.0
        for model in (A, B):
            harness.send(CLIENT, submit(number, model))
            number += 1
        open_leases += harness.leases()
        served_models.append((harness.now, open_leases[0].model))
        harness.send(WORKER, *finish(open_leases.pop(0)))
        open_leases += harness.leases()
    switch_times = [now for (_, before), (now, after) in pairwise(served_models) if before != after]
    intervals = np.diff(switch_times)
    assert len(intervals) > 10
    assert intervals.min() >= 30.0
    assert intervals.max() <= 30.0 + 3.0


def test_a_worker_from_another_broker_still_has_its_model() -> None:
    harness = BrokerHarness()
    harness.send(WORKER, register(model=A))
    harness.send(OTHER_WORKER, register(model=B))
    harness.send(CLIENT, OPEN_SESSION, submit(1, B), submit(2, A))
    assert (harness.lease(WORKER).model, harness.lease(OTHER_WORKER).model) == (A, B)
    harness.send(CLIENT, m.Ping())
    assert [pong.model_switches for pong in harness.received(CLIENT, m.Pong)] == [0]

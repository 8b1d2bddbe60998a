"""ClusterCore, event by event with a fake clock."""

from __future__ import annotations

import pytest

from birdie_zmq.cluster.core import (
    Action,
    ActorLost,
    ClusterCore,
    Log,
    LogWaiting,
    Placed,
    PlaceWorker,
    Tick,
    WorkerExited,
)


def texts(actions: list[Action]) -> list[str]:
    return [action.text for action in actions if isinstance(action, Log)]


def placed_workers(actions: list[Action]) -> list[int]:
    return [action.worker for action in actions if isinstance(action, PlaceWorker)]


def test_all_workers_are_placed_at_start_and_their_locations_logged() -> None:
    core = ClusterCore(2)

    assert core.handle(Tick(), 0.0) == [PlaceWorker(1), PlaceWorker(2)]
    assert core.handle(Placed(2, "node a, process 7"), 1.0) == [Log("info", "worker 2 is placed: node a, process 7")]


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (WorkerExited(1, -9, "…"), "its process exited by SIGKILL"),
        (WorkerExited(1, 0, "…"), "its process exited with status 0"),
        (WorkerExited(1, -63, "…"), "its process exited by signal 63"),
        (ActorLost(1, "the node died"), "the node died"),
    ],
)
def test_lost_worker_is_placed_again_at_once(event: WorkerExited | ActorLost, reason: str) -> None:
    core = ClusterCore(1)
    core.handle(Tick(), 0.0)
    core.handle(Placed(1, "node a"), 1.0)

    actions = core.handle(event, 5.0)

    assert texts(actions) == [f"worker 1 (node a) is gone: {reason}; requesting a new placement from Ray"]
    assert placed_workers(actions) == [1]
    assert texts(core.handle(Placed(1, "node b"), 6.0)) == ["worker 1 is placed again: node b"]


def test_worker_lost_before_its_placement_is_logged_without_a_location() -> None:
    core = ClusterCore(1)
    core.handle(Tick(), 0.0)
    core.handle(Placed(1, "node a"), 1.0)
    core.handle(ActorLost(1, "the node died"), 2.0)

    logged = texts(core.handle(ActorLost(1, "the package is not there"), 3.0))

    assert logged == ["worker 1 is gone: the package is not there; requesting a new placement in 1 s"]


def test_worker_that_keeps_failing_is_placed_after_growing_bounded_pauses() -> None:
    core = ClusterCore(1)
    core.handle(Tick(), 0.0)
    now, pauses = 0.0, []
    for _ in range(10):
        core.handle(Placed(1, "node a"), now)
        requested = placed_workers(core.handle(WorkerExited(1, 1, "…"), now))
        lost_at = now
        while not requested:
            now += 0.5
            requested = placed_workers(core.handle(Tick(), now))
        pauses.append(now - lost_at)

    assert pauses == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_worker_stable_for_a_minute_is_placed_again_at_once() -> None:
    core = ClusterCore(1)
    core.handle(Tick(), 0.0)
    for now in (0.0, 1.0):
        core.handle(Placed(1, "node a"), now)
        core.handle(WorkerExited(1, 1, "…"), now)
    core.handle(Tick(), 2.0)
    core.handle(Placed(1, "node a"), 2.0)

    assert placed_workers(core.handle(WorkerExited(1, 1, "…"), 62.0)) == [1]


def test_worker_with_a_usage_error_is_not_placed_again() -> None:
    core = ClusterCore(2)
    core.handle(Tick(), 0.0)
    core.handle(Placed(1, "node a"), 1.0)
    core.handle(Placed(2, "node b"), 1.0)

    actions = core.handle(WorkerExited(1, 2, "there is no user module at /x/api.py"), 2.0)

    assert actions == [
        Log("warning", "worker 1 (node a) failed and is not placed again: there is no user module at /x/api.py")
    ]
    assert placed_workers(core.handle(Tick(), 1000.0)) == []
    before = core.has_failed
    core.handle(WorkerExited(2, 2, "the key is revoked"), 1001.0)
    assert (before, core.has_failed) == (False, True)
    assert core.last_line == "the key is revoked"


def test_waiting_workers_are_logged_together_once_a_minute() -> None:
    core = ClusterCore(3)
    core.handle(Tick(), 0.0)
    core.handle(Placed(1, "node a"), 1.0)

    logged = {now: core.handle(Tick(), float(now)) for now in range(2, 100)}

    assert {now: actions for now, actions in logged.items() if actions} == {
        10: [LogWaiting((2, 3))],
        70: [LogWaiting((2, 3))],
    }

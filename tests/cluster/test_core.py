"""When a worker is placed again, by events and a clock that the test says."""

from __future__ import annotations

import pytest

from birdie_zmq.cluster.core import Action, ClusterCore, Ended, Lost, Place, Placed, Say, SayWaiting, Tick


def texts(actions: list[Action]) -> list[str]:
    return [action.text for action in actions if isinstance(action, Say)]


def places(actions: list[Action]) -> list[int]:
    return [action.worker for action in actions if isinstance(action, Place)]


def test_all_are_placed_at_first_and_each_place_is_said() -> None:
    crew = ClusterCore(2)

    assert crew.begin(0.0) == [Place(1), Place(2)]
    assert crew.handle(Placed(2, "node a, process 7"), 1.0) == [Say("info", "worker 2 is placed: node a, process 7")]


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (Ended(1, -9, "…"), "its process ended by SIGKILL"),
        (Ended(1, 0, "…"), "its process ended with status 0"),
        (Ended(1, -63, "…"), "its process ended by signal 63"),
        (Lost(1, "the node died"), "the node died"),
    ],
)
def test_one_that_is_lost_is_placed_again_at_once(event: Ended | Lost, why: str) -> None:
    crew = ClusterCore(1)
    crew.begin(0.0)
    crew.handle(Placed(1, "node a"), 1.0)

    actions = crew.handle(event, 5.0)

    assert texts(actions) == [f"worker 1 (node a) is lost: {why}; Ray is asked for another place"]
    assert places(actions) == [1]
    assert texts(crew.handle(Placed(1, "node b"), 6.0)) == ["worker 1 is placed again: node b"]


def test_one_that_was_not_placed_when_it_was_lost_is_not_said_to_be_where_it_was_before() -> None:
    crew = ClusterCore(1)
    crew.begin(0.0)
    crew.handle(Placed(1, "node a"), 1.0)
    crew.handle(Lost(1, "the node died"), 2.0)

    said = texts(crew.handle(Lost(1, "the package is not there"), 3.0))

    assert said == ["worker 1 is lost: the package is not there; another place is asked for in 1 s"]


def test_one_that_never_stands_long_waits_longer_each_time_and_not_for_ever() -> None:
    crew = ClusterCore(1)
    crew.begin(0.0)
    now, pauses = 0.0, []
    for _ in range(10):
        crew.handle(Placed(1, "node a"), now)
        asked = places(crew.handle(Ended(1, 1, "…"), now))
        lost_at = now
        while not asked:
            now += 0.5
            asked = places(crew.handle(Tick(), now))
        pauses.append(now - lost_at)

    assert pauses == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_one_that_has_stood_a_minute_is_forgiven() -> None:
    crew = ClusterCore(1)
    crew.begin(0.0)
    for now in (0.0, 1.0):
        crew.handle(Placed(1, "node a"), now)
        crew.handle(Ended(1, 1, "…"), now)
    crew.handle(Tick(), 2.0)
    crew.handle(Placed(1, "node a"), 2.0)

    assert places(crew.handle(Ended(1, 1, "…"), 62.0)) == [1]


def test_a_worker_that_only_a_person_can_help_is_not_placed_again() -> None:
    crew = ClusterCore(2)
    crew.begin(0.0)
    crew.handle(Placed(1, "node a"), 1.0)
    crew.handle(Placed(2, "node b"), 1.0)

    actions = crew.handle(Ended(1, 2, "there is no page at /x/api.py"), 2.0)

    assert actions == [
        Say("warning", "worker 1 (node a) cannot work and is not placed again: there is no page at /x/api.py")
    ]
    assert places(crew.handle(Tick(), 1000.0)) == []
    before = crew.is_given_up
    crew.handle(Ended(2, 2, "the key is revoked"), 1001.0)
    assert (before, crew.is_given_up) == (False, True)
    assert crew.last_words == "the key is revoked"


def test_those_that_wait_for_room_are_said_together_and_not_all_the_time() -> None:
    crew = ClusterCore(3)
    crew.begin(0.0)
    crew.handle(Placed(1, "node a"), 1.0)

    said = {now: crew.handle(Tick(), float(now)) for now in range(2, 100)}

    assert {now: actions for now, actions in said.items() if actions} == {
        10: [SayWaiting((2, 3))],
        70: [SayWaiting((2, 3))],
    }

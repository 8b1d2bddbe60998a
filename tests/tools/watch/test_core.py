"""Which checkpoint a watch evaluates next, and when it ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.tools.watch.core import (
    Action,
    End,
    Evaluate,
    Finished,
    Note,
    Outcome,
    Record,
    Scanned,
    Sighting,
    Status,
    WatchCore,
    WatchPolicy,
)


def seen(step: int, missing: str | None = None, state: str = "a") -> Sighting:
    return Sighting(step, f"/run/step_{step}", missing, state)


def core(outcomes: dict[int, Outcome] | None = None, policy: WatchPolicy | None = None) -> WatchCore:
    return WatchCore(policy or WatchPolicy(), outcomes or {})


def settled(machine: WatchCore, *sightings: Sighting, at: float = 100.0) -> list[Action]:
    """Scan the same files twice, so that they have settled at the second time."""
    machine.handle(Scanned(sightings), at - 10.0)
    return machine.handle(Scanned(sightings), at)


def test_checkpoint_is_evaluated_once_its_files_have_settled() -> None:
    machine = core()

    assert machine.handle(Scanned([seen(1)]), 0.0) == []
    assert machine.handle(Scanned([seen(1, state="b")]), 4.0) == []
    assert machine.handle(Scanned([seen(1, state="b")]), 8.0) == []
    assert machine.handle(Scanned([seen(1, state="b")]), 9.0) == [Evaluate(seen(1, state="b"))]


def test_incomplete_checkpoint_waits_and_is_named_once() -> None:
    machine = core()
    half = seen(1, missing="model-2.safetensors")

    assert machine.handle(Scanned([half]), 0.0) == [Note("step 1 is not complete: it lacks model-2.safetensors")]
    assert machine.handle(Scanned([half]), 100.0) == []
    assert settled(machine, seen(1, state="b"), at=200.0) == [Evaluate(seen(1, state="b"))]


def test_oldest_or_newest_comes_first() -> None:
    assert settled(core(), seen(3), seen(1), seen(2)) == [Evaluate(seen(1))]
    newest = core(policy=WatchPolicy(order="newest"))
    assert settled(newest, seen(3), seen(1), seen(2)) == [Evaluate(seen(3))]


def test_evaluated_step_is_never_evaluated_again() -> None:
    machine = core({1: Outcome("evaluated", "a")})

    assert settled(machine, seen(1), seen(2)) == [Evaluate(seen(2))]
    machine.handle(Finished(seen(2), "evaluated"), 101.0)
    assert settled(machine, seen(1), seen(2), at=200.0) == []


def test_rewritten_step_that_was_evaluated_is_named() -> None:
    machine = core({1: Outcome("evaluated", "a")})

    (action,) = machine.handle(Scanned([seen(1, state="b")]), 0.0)

    assert action == Note("the files of step 1 have changed since it was evaluated; it is not evaluated again")


def test_failed_step_is_tried_again_only_with_other_files() -> None:
    machine = core({1: Outcome("failed", "a")})

    assert settled(machine, seen(1)) == []
    assert settled(machine, seen(1, state="b"), at=200.0) == [Evaluate(seen(1, state="b"))]


def test_deleted_checkpoint_is_recorded_once() -> None:
    machine = core()
    settled(machine, seen(1), seen(2))

    assert machine.handle(Scanned([seen(1)]), 101.0) == [Record(seen(2), "deleted"), Evaluate(seen(1))]
    assert machine.handle(Scanned([seen(1)]), 102.0) == [Evaluate(seen(1))]


def test_deleted_checkpoint_that_comes_back_is_evaluated() -> None:
    assert settled(core({1: Outcome("deleted", "a")}), seen(1)) == [Evaluate(seen(1))]


def test_checkpoint_that_changed_while_it_was_read_must_settle_again() -> None:
    machine = core()
    settled(machine, seen(1))
    machine.handle(Finished(seen(1), "changed"), 101.0)

    assert machine.handle(Scanned([seen(1, state="b")]), 102.0) == []
    assert machine.handle(Scanned([seen(1, state="b")]), 107.0) == [Evaluate(seen(1, state="b"))]


def test_checkpoint_that_vanishes_while_it_is_read_is_recorded() -> None:
    machine = core()
    settled(machine, seen(1))
    machine.handle(Finished(seen(1), "changed"), 101.0)

    assert machine.handle(Scanned([]), 102.0) == [Record(seen(1), "deleted")]


def test_incomplete_checkpoint_that_vanishes_is_no_result() -> None:
    machine = core()
    machine.handle(Scanned([seen(1, missing="config.json")]), 0.0)

    assert machine.handle(Scanned([]), 1.0) == []


def test_ends_on_the_stop_file_also_with_checkpoints_left() -> None:
    machine = core()
    settled(machine, seen(1))

    assert machine.handle(Scanned([seen(1)], stop=True), 101.0) == [End("the stop file is there")]


def test_once_waits_for_files_to_settle_but_not_for_incomplete_ones() -> None:
    machine = core(policy=WatchPolicy(once=True))
    sightings = [seen(1), seen(2, missing="config.json")]

    assert isinstance(machine.handle(Scanned(sightings), 0.0)[0], Note)
    assert machine.handle(Scanned(sightings), 5.0) == [Evaluate(seen(1))]
    machine.handle(Finished(seen(1), "evaluated"), 6.0)
    assert machine.handle(Scanned(sightings), 7.0) == [End("no complete checkpoint is left")]


def test_once_ends_where_there_is_nothing() -> None:
    assert core(policy=WatchPolicy(once=True)).handle(Scanned([]), 0.0) == [End("no complete checkpoint is left")]


def test_until_step_ends_after_that_step_and_all_before() -> None:
    machine = core(policy=WatchPolicy(order="newest", until_step=20))

    assert settled(machine, seen(10), seen(20), seen(30)) == [Evaluate(seen(20))]
    machine.handle(Finished(seen(20), "evaluated"), 101.0)
    assert machine.handle(Scanned([seen(10), seen(20), seen(30)]), 102.0) == [Evaluate(seen(10))]
    machine.handle(Finished(seen(10), "failed"), 103.0)
    assert machine.handle(Scanned([seen(10), seen(20), seen(30)]), 104.0) == [End("step 20 is done")]


def test_until_step_that_is_not_saved_ends_after_the_first_one_behind_it() -> None:
    machine = core({10: Outcome("evaluated", "a")}, WatchPolicy(until_step=15))

    assert settled(machine, seen(10), seen(20), seen(30)) == [Evaluate(seen(20))]
    machine.handle(Finished(seen(20), "evaluated"), 101.0)
    assert machine.handle(Scanned([seen(10), seen(20), seen(30)]), 102.0) == [End("step 15 is done")]


def test_until_step_waits_for_an_incomplete_checkpoint_unless_it_is_abandoned() -> None:
    machine = core({20: Outcome("evaluated", "a")}, WatchPolicy(until_step=20, abandon_s=60.0))
    sightings = [seen(10, missing="config.json"), seen(20)]
    machine.handle(Scanned(sightings), 0.0)

    assert machine.handle(Scanned(sightings), 59.0) == []
    assert machine.handle(Scanned(sightings), 60.0) == [End("step 20 is done")]


STATES = st.sampled_from(["a", "b"])
SIGHTINGS = st.lists(
    st.builds(seen, step=st.integers(0, 4), missing=st.sampled_from([None, None, "config.json"]), state=STATES),
    unique_by=lambda sighting: sighting.step,
)
STATUSES: st.SearchStrategy[Status] = st.sampled_from(["evaluated", "failed", "deleted", "changed"])


@given(st.lists(st.tuples(SIGHTINGS, STATUSES), max_size=40), st.sampled_from(["oldest", "newest"]))
def test_no_step_is_evaluated_twice_or_before_it_is_complete(
    script: list[tuple[list[Sighting], Status]], order: str
) -> None:
    machine = core(policy=WatchPolicy(order="newest" if order == "newest" else "oldest", settle_s=1.0))
    evaluated: set[int] = set()
    for now, (sightings, status) in enumerate(script):
        chosen = [a.sighting for a in machine.handle(Scanned(sightings), float(now)) if isinstance(a, Evaluate)]
        assert len(chosen) <= 1
        for sighting in chosen:
            assert sighting in sightings
            assert sighting.missing is None
            assert sighting.step not in evaluated
            machine.handle(Finished(sighting, status), float(now))
            if status == "evaluated":
                evaluated.add(sighting.step)

"""RestartPolicy with a fake clock."""

from __future__ import annotations

from birdie_zmq.processes.restart_policy import RestartPolicy


def test_pauses_double_up_to_the_longest() -> None:
    policy = RestartPolicy(first_pause_s=0.5, max_pause_s=3.0)
    assert [policy.failed(0.0) for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_process_may_start_after_the_pause() -> None:
    policy = RestartPolicy(first_pause_s=2.0)
    assert policy.may_start(0.0)
    policy.failed(10.0)
    assert [policy.may_start(now) for now in (10.0, 11.9, 12.0)] == [False, False, True]


def test_no_pause_follows_the_immediate_restarts() -> None:
    policy = RestartPolicy(first_pause_s=1.0, immediate_restarts=2)
    assert [policy.failed(0.0) for _ in range(4)] == [0.0, 0.0, 1.0, 2.0]


def test_process_is_given_up_after_the_last_failure_allowed() -> None:
    policy = RestartPolicy(max_failures=3)
    exhausted = []
    for _ in range(3):
        assert policy.failed(5.0) == 0.0
        exhausted.append(policy.is_exhausted)
    assert exhausted == [False, False, True]
    assert (policy.failures, policy.may_start(1e9)) == (3, False)


def test_success_forgets_failures_and_pauses() -> None:
    policy = RestartPolicy(max_failures=2, first_pause_s=4.0)
    policy.failed(0.0)
    policy.failed(0.0)
    policy.succeeded()
    assert (policy.failures, policy.is_exhausted, policy.may_start(0.0)) == (0, False, True)
    assert policy.failed(0.0) == 4.0


def test_many_failures_do_not_overflow() -> None:
    policy = RestartPolicy(first_pause_s=1.0, max_pause_s=60.0)
    assert {policy.failed(0.0) for _ in range(5_000)} >= {1.0, 32.0, 60.0}

"""ClientCore when the broker is silent, or no worker is there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from birdie_zmq.client.actions import FailCall, Log, Send
from birdie_zmq.client.core import ClientCore
from birdie_zmq.errors import BrokerUnavailable, WorkerUnavailable
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import BrokerSettings, ClientSettings
from tests.client.harness import (
    ENDPOINT,
    LIMITS,
    MODEL,
    OPEN_SESSION,
    OPENED,
    PING,
    SETTINGS,
    UNKNOWN_PEER,
    answered,
    failure,
    job,
    new_core,
    open_core,
    sent,
    submit,
)


def test_a_connection_timeout_names_the_endpoint_and_the_command() -> None:
    core = new_core()
    core.begin([job(0)], now=10.0)

    assert core.tick(now=15.0) == [OPEN_SESSION]
    error = failure(core.tick(now=15.1)).error
    assert isinstance(error, BrokerUnavailable)
    assert f"no broker answered at {ENDPOINT} within 5 s" in error.message
    assert f"python broker.py --bind {ENDPOINT}" in error.message


def test_the_next_call_opens_a_session_again_with_the_full_timeout() -> None:
    core = new_core()
    core.begin([job(0)], now=0.0)
    core.tick(now=6.0)

    assert core.begin([job(1)], now=100.0) == [OPEN_SESSION]
    assert core.tick(now=105.0) == [OPEN_SESSION]
    assert core.received(OPENED, now=105.0) == [PING, submit(0, 1)]


def test_a_call_after_an_interrupted_one_waits_the_full_timeout() -> None:
    core = new_core()
    core.begin([job(0)], now=0.0)  # Then Ctrl-C ends this call.

    core.begin([job(1)], now=100.0)

    assert core.tick(now=105.0) == [OPEN_SESSION]
    assert core.received(OPENED, now=105.0) == [PING, submit(0, 1)]


def test_a_silent_broker_is_warned_about_once_and_then_fails_the_call() -> None:
    core = open_core(job(0))
    core.received(m.Pong(workers=1), now=10.0)

    assert core.tick(now=19.9) == [PING]
    log_action, ping = core.tick(now=21.0)
    assert isinstance(log_action, Log)
    assert f"the broker at {ENDPOINT} has been silent for 11 s; waiting 19 s more" in log_action.text
    assert ping == PING
    assert core.tick(now=40.0) == [PING]
    error = failure(core.tick(now=40.1)).error
    assert isinstance(error, BrokerUnavailable)
    assert f"no broker answered at {ENDPOINT} within 30 s" in error.message


def test_open_session_is_repeated_until_a_lost_broker_is_back() -> None:
    core = open_core(job(0))
    core.received(UNKNOWN_PEER, now=1.0)

    assert core.tick(now=1.9) == []
    assert core.tick(now=2.0) == [OPEN_SESSION]
    assert sent(core.tick(now=30.0)) == [OPEN_SESSION]
    assert isinstance(failure(core.tick(now=31.1)).error, BrokerUnavailable)


def test_a_lost_open_session_is_repeated() -> None:
    core = new_core()
    core.begin([job(0)], now=0.0)

    assert core.tick(now=1.0) == [OPEN_SESSION]
    assert core.received(OPENED, now=1.1) == [PING, submit(0, 0)]


def test_time_in_which_this_process_was_stopped_counts_for_no_timeout() -> None:
    core = open_core(job(0))
    core.received(m.Pong(workers=0), now=1.0)

    assert core.tick(now=3_601.0, stall_s=3_600.0) == [PING]
    assert core.received(m.Pong(workers=0), now=3_602.0) == []


def test_a_stopped_process_still_waits_for_the_session() -> None:
    core = new_core()
    core.begin([job(0)], now=0.0)

    assert core.tick(now=3_601.0, stall_s=3_600.0) == [OPEN_SESSION]


def test_broker_silence_and_missing_worker_times() -> None:
    core = open_core(job(0))
    core.received(m.Pong(workers=1), now=10.0)
    assert (core.broker_silent_s(now=12.0), core.worker_missing_s()) == (2.0, 0.0)
    core.received(m.Pong(workers=0), now=15.0)
    assert (core.broker_silent_s(now=15.0), core.worker_missing_s()) == (0.0, 5.0)
    core.received(answered(0, {0: -1.0}), now=16.0)
    assert (core.broker_silent_s(now=99.0), core.worker_missing_s()) == (0.0, 0.0)


def test_model_switches_and_retries_are_summed_over_broker_restarts() -> None:
    core = open_core(job(0))
    core.received(m.Pong(workers=1, model_switches=2, retries=1), now=1.0)
    core.received(m.Pong(workers=1, model_switches=3, retries=1), now=2.0)
    core.received(UNKNOWN_PEER, now=3.0)
    core.received(OPENED, now=3.0)
    core.received(m.Pong(workers=1, model_switches=0, retries=4), now=4.0)

    assert (core.session.model_switches, core.session.retries) == (3, 5)


def test_time_before_a_call_counts_for_no_timeout() -> None:
    core = open_core()

    assert core.begin([job(0)], now=1000.0) == [PING, submit(0, 0)]
    assert core.tick(now=1000.1) == []


def test_the_broker_is_pinged_while_items_are_unanswered() -> None:
    core = open_core(job(0))

    assert core.tick(now=0.9) == []
    assert core.tick(now=1.0) == [PING]
    assert core.tick(now=1.9) == []
    assert core.tick(now=2.0) == [PING]
    core.received(answered(0, {0: -1.0}), now=2.5)
    assert core.tick(now=4.0) == []


def test_no_worker_is_warned_about_once_and_then_fails_the_call() -> None:
    core = open_core(job(0))

    (log_action,) = core.received(m.Pong(workers=0), now=1.0)
    assert isinstance(log_action, Log)
    assert log_action.level == "warning"
    assert f"no worker yet; start one with: python -m workers.jax_worker --connect {ENDPOINT}" in log_action.text
    assert core.received(m.Pong(workers=0), now=60.0) == []
    error = failure(core.received(m.Pong(workers=0), now=60.1)).error
    assert isinstance(error, WorkerUnavailable)
    assert f"the broker at {ENDPOINT} has had no worker for 60 s" in error.message
    assert f"python -m workers.jax_worker --connect {ENDPOINT}" in error.message


@pytest.mark.parametrize(
    "message",
    [m.Pong(workers=1), answered(0, {0: -1.0}), m.Notice(batch=0, level="info", text="loading")],
)
def test_every_message_of_a_worker_restarts_the_worker_timeout(message: m.BrokerToClient) -> None:
    core = open_core(job(0, 1))
    core.received(message, now=50.0)

    assert not any(isinstance(action, FailCall) for action in core.received(m.Pong(workers=0), now=110.0))
    assert isinstance(failure(core.received(m.Pong(workers=0), now=110.1)).error, WorkerUnavailable)


def test_the_next_call_warns_about_no_worker_again() -> None:
    core = open_core(job(0))
    core.received(m.Pong(workers=0), now=1.0)

    core.begin([job(1)], now=100.0)

    (log_action,) = core.received(m.Pong(workers=0), now=101.0)
    assert isinstance(log_action, Log)


@pytest.mark.parametrize(("workers", "in_flight"), [(0, 2), (1, 3), (3, 7), (100, 9)])
def test_more_workers_have_more_batches_in_flight(workers: int, in_flight: int) -> None:
    settings = replace(SETTINGS, max_window=9)
    core = ClientCore(MODEL, LIMITS, settings, ENDPOINT)
    core.begin([job(item) for item in range(20)], now=0.0)
    sent = core.received(OPENED, now=0.0)
    sent += core.received(m.Pong(workers=workers), now=0.5)
    assert (
        len([action for action in sent if isinstance(action, Send) and isinstance(action.message, m.Submit)])
        == in_flight
    )


def test_characters_in_flight_are_limited() -> None:
    """With many workers, many batches of long texts would be more bytes than the broker accepts."""
    settings = replace(SETTINGS, max_window=9, max_characters_in_flight=50)
    core = ClientCore(MODEL, LIMITS, settings, ENDPOINT)
    core.begin([replace(job(item), characters=20) for item in range(20)], now=0.0)
    core.received(OPENED, now=0.0)
    assert [action for action in core.received(m.Pong(workers=100), now=0.5) if isinstance(action, Send)] == []

    settings = replace(settings, max_characters_in_flight=60)
    core = ClientCore(MODEL, LIMITS, settings, ENDPOINT)
    core.begin([replace(job(item), characters=20) for item in range(20)], now=0.0)
    core.received(OPENED, now=0.0)
    assert len([action for action in core.received(m.Pong(workers=100), now=0.5) if isinstance(action, Send)]) == 1


def test_client_limits_are_within_the_brokers_limits() -> None:
    client, broker = ClientSettings(), BrokerSettings()
    assert max(client.window, client.max_window) <= broker.max_batches_per_client
    most = max(client.max_characters_in_flight, client.window * client.batch_characters)
    assert 4 * most < broker.max_bytes_per_client

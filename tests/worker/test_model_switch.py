"""AgentCore when a lease for another model arrives: the process is replaced, or its weights are."""

import pytest

from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import AgentSettings
from birdie_zmq.types import REQUEST_ARGUMENTS, ComputeCounters, ErrorReport, ModelSpec
from birdie_zmq.worker.core import AgentCore
from birdie_zmq.worker.events import (
    LeasesRevoked,
    MemoryFreed,
    SendToBroker,
    SendToModel,
    StartModelProcess,
    StopModelProcess,
)
from tests.worker.harness import (
    LOAD_FAILED,
    LOADED,
    A,
    B,
    Harness,
    done,
    ending,
    idle,
    lease,
    loading,
    sent_leases,
    texts_of,
    to_broker,
)


def test_process_is_stopped_after_the_last_lease_of_its_model(harness: Harness) -> None:
    first, second = harness.serve(lease(1, A), lease(2, A))
    assert harness.receive_leases(lease(3, B)) == []
    assert harness.from_model(done(first)) == [SendToBroker(m.LeaseDone(lease=1))]
    assert harness.from_model(done(second)) == [SendToBroker(m.LeaseDone(lease=2)), StopModelProcess(kill=False)]


def test_new_process_starts_after_the_old_one_has_exited(harness: Harness) -> None:
    ending(harness)
    assert harness.advance(0.1) == []
    assert harness.exit_process(-15) == [StartModelProcess(B, 2)]
    assert [texts_of(sent) for sent in sent_leases(harness.from_model(LOADED))] == [["x"]]


def test_lease_of_the_loaded_model_is_served_before_the_model_switch(harness: Harness) -> None:
    (first,) = harness.serve(lease(1, A))
    harness.receive_leases(lease(2, B))
    (third,) = sent_leases(harness.receive_leases(lease(3, A)))
    assert to_broker(harness.from_model(done(first))) == [m.LeaseDone(lease=1)]
    assert harness.from_model(done(third)) == [SendToBroker(m.LeaseDone(lease=3)), StopModelProcess(kill=False)]


def test_later_leases_of_the_loaded_model_do_not_starve_another_model(harness: Harness) -> None:
    (first,) = harness.serve(lease(1, A))
    harness.receive_leases(lease(2, B))
    waiting = sent_leases(harness.receive_leases(lease(3, A)))
    harness.from_model(done(first))
    waiting += sent_leases(harness.receive_leases(lease(4, A)))
    actions = harness.from_model(*map(done, waiting))
    assert actions[-1] == StopModelProcess(kill=False)


def test_lease_of_the_old_model_waits_while_its_process_ends(harness: Harness) -> None:
    ending(harness)
    harness.receive_leases(lease(3, A, texts="again"))
    assert harness.exit_process(0) == [StartModelProcess(B, 2)]
    (sent,) = sent_leases(harness.from_model(LOADED))
    assert sent.model == B
    assert harness.from_model(done(sent))[1:] == [StopModelProcess(kill=False)]
    assert harness.exit_process(0) == [StartModelProcess(A, 3)]


def test_same_tag_with_other_arguments_is_another_model(harness: Harness) -> None:
    idle(harness)
    assert harness.receive_leases(lease(2, ModelSpec(tag="A", arguments='{"seed": 1}'))) == [
        StopModelProcess(kill=False)
    ]


SWAP = SendToModel(m.SwapWeights(model=B))


@pytest.fixture
def swapping() -> Harness:
    """An agent that swaps weights and has served A; its process has no lease."""
    harness = Harness(swaps_weights=True)
    (first,) = harness.serve(lease(1, A))
    harness.from_model(m.ModelHeartbeat(steps=1, computed=ComputeCounters(tokens=7)), done(first))
    return harness


def test_weights_are_swapped_once_no_lease_is_open(swapping: Harness) -> None:
    (running,) = sent_leases(swapping.receive_leases(lease(2, A)))

    assert swapping.receive_leases(lease(3, B)) == []
    assert swapping.from_model(done(running)) == [SendToBroker(m.LeaseDone(lease=2)), SWAP]
    assert (swapping.core.model, swapping.core.phase) == (B, "loading")
    assert swapping.receive_leases(lease(4, B), lease(5, A)) == []
    assert [sent.lease for sent in sent_leases(swapping.from_model(LOADED))] == [3, 4]


def test_counters_go_on_after_weights_are_swapped(swapping: Harness) -> None:
    swapping.receive_leases(lease(2, B))
    # The process sent this heartbeat before it received the message.
    swapping.from_model(m.ModelHeartbeat(steps=1, computed=ComputeCounters(tokens=7)), LOADED)
    swapping.from_model(m.ModelHeartbeat(steps=2, computed=ComputeCounters(tokens=5)))

    assert swapping.core.computed == ComputeCounters(tokens=12)


def test_process_that_refuses_to_swap_is_replaced(swapping: Harness) -> None:
    swapping.receive_leases(lease(2, B))

    assert swapping.from_model(m.SwapRefused(reason="its tokenizer differs")) == [StopModelProcess(kill=False)]
    assert swapping.exit_process(-15) == [StartModelProcess(B, 2)]
    assert "its tokenizer differs" in swapping.notices[-2].text
    assert [sent.lease for sent in sent_leases(swapping.from_model(LOADED))] == [2]


def test_failed_swap_fails_its_leases_and_ends_the_process(swapping: Harness) -> None:
    swapping.receive_leases(lease(2, B))
    error = ErrorReport(code="model-load", message="a tensor is missing")

    assert swapping.from_model(m.ModelLoadFailed(error=error)) == [
        SendToBroker(m.LeaseFailed(lease=2, error=error)),
        StopModelProcess(kill=False),
    ]
    swapping.exit_process(-15)
    assert swapping.receive_leases(lease(3, A)) == [StartModelProcess(A, 2)]


def test_process_that_dies_while_it_swaps_is_replaced(swapping: Harness) -> None:
    swapping.receive_leases(lease(2, B))

    assert swapping.exit_process(-9) == []
    assert swapping.advance(AgentSettings().restart_delay_s) == [StartModelProcess(B, 2)]


def test_weights_are_not_swapped_where_arguments_differ(swapping: Harness) -> None:
    other = ModelSpec(tag="B", arguments='{"dtype": "bfloat16"}')

    assert swapping.receive_leases(lease(2, other)) == [StopModelProcess(kill=False)]


def test_loading_is_stopped_when_no_lease_waits_for_it(harness: Harness) -> None:
    loading(harness)
    harness.handle(LeasesRevoked())
    assert harness.receive_leases(lease(2, B)) == [StopModelProcess(kill=False)]


def test_process_that_does_not_exit_in_time_is_killed_once(harness: Harness) -> None:
    ending(harness)
    assert harness.advance(harness.settings.terminate_s - 0.1) == []
    assert harness.advance(0.1) == [StopModelProcess(kill=True)]
    assert harness.advance(10 * harness.settings.terminate_s) == []
    assert harness.exit_process(-9) == [StartModelProcess(B, 2)]


def test_requested_exit_is_not_a_crash(harness: Harness) -> None:
    ending(harness)
    harness.receive_leases(lease(3, A))
    assert harness.exit_process(-15) == [StartModelProcess(B, 2)]
    assert not any("exited unexpectedly" in text for text in harness.logged)


def test_process_that_exits_in_time_is_not_killed(harness: Harness) -> None:
    ending(harness)
    harness.exit_process(0)
    assert harness.advance(10 * harness.settings.terminate_s) == []


@pytest.mark.parametrize("late_message", [LOADED, LOAD_FAILED], ids=["loaded", "load-failed"])
def test_messages_of_an_ending_process_do_not_change_the_phase(
    harness: Harness, late_message: m.ModelProcessMessage
) -> None:
    loading(harness)
    harness.handle(LeasesRevoked())
    harness.receive_leases(lease(2, B))
    harness.now += harness.settings.terminate_s - 0.1
    assert harness.from_model(late_message) == []
    assert harness.core.phase == "ending"
    assert harness.advance(0.1) == [StopModelProcess(kill=True)]


# --- The memory of the device ----------------------------------------------------------------------------------------


@pytest.fixture
def watching() -> Harness:
    harness = Harness()
    harness.core = AgentCore(harness.settings, watches_memory=True)
    return harness


def test_next_process_starts_when_the_memory_is_free(watching: Harness) -> None:
    ending(watching)
    assert watching.exit_process(0) == []
    assert watching.core.waits_for_memory
    assert watching.advance(1.0) == []
    assert watching.handle(MemoryFreed()) == [StartModelProcess(B, 2)]
    assert not watching.core.waits_for_memory


def test_waiting_for_free_memory_has_a_timeout(watching: Harness) -> None:
    ending(watching)
    watching.exit_process(0)
    assert watching.advance(watching.settings.memory_wait_s - 0.1) == []
    assert watching.advance(0.1) == [StartModelProcess(B, 2)]
    assert any("memory is still in use" in text for text in watching.logged)


# --- Request arguments ------------------------------------------------------------------------------------------------


SEED_1, SEED_2 = (ModelSpec(tag="A", request_arguments=(("seed", str(seed)),)) for seed in (1, 2))
LOADED_IGNORING_SEEDS = m.ModelLoaded(seconds=1.5, request_arguments=("seed",))


def test_leases_with_other_ignored_arguments_go_to_the_same_process(harness: Harness) -> None:
    harness.receive_leases(lease(1, SEED_1), lease(2, SEED_2))
    assert [sent.lease for sent in sent_leases(harness.from_model(LOADED_IGNORING_SEEDS))] == [1, 2]
    assert harness.core.request_arguments == ("seed",)
    assert [sent.lease for sent in sent_leases(harness.receive_leases(lease(3, A)))] == [3]


def test_a_process_that_declares_nothing_is_replaced_for_other_arguments(harness: Harness) -> None:
    harness.receive_leases(lease(1, SEED_1), lease(2, SEED_2))
    (sent,) = sent_leases(harness.from_model(LOADED))
    assert sent.lease == 1
    assert harness.from_model(m.LeaseDone(lease=1))[-1] == StopModelProcess(kill=False)
    assert harness.exit_process(0) == [StartModelProcess(SEED_2, 2)]


def test_what_a_process_ignores_is_forgotten_when_it_ends(harness: Harness) -> None:
    harness.receive_leases(lease(1, SEED_1))
    harness.from_model(LOADED_IGNORING_SEEDS)
    harness.exit_process()
    assert harness.core.request_arguments == ()
    harness.receive_leases(lease(2, SEED_1), lease(3, SEED_2))
    assert [sent.lease for sent in sent_leases(harness.from_model(LOADED))] == [2]


def test_a_dead_process_returns_the_leases_of_all_its_arguments() -> None:
    harness = Harness(request_arguments=REQUEST_ARGUMENTS)
    harness.receive_leases(lease(1, SEED_1), lease(2, SEED_2))
    assert len(sent_leases(harness.from_model(LOADED_IGNORING_SEEDS))) == 2
    crashed, returned = harness.exit_process()
    assert isinstance(crashed, SendToBroker)
    assert isinstance(crashed.message, m.LeaseCrashed)
    assert returned == SendToBroker(m.LeaseReturned(lease=2))


def test_an_error_of_loading_fails_no_run_with_other_arguments() -> None:
    harness = Harness(request_arguments=REQUEST_ARGUMENTS)
    harness.receive_leases(lease(1, SEED_1), lease(2, SEED_2))
    failed, stopped = harness.from_model(LOAD_FAILED)
    assert isinstance(failed, SendToBroker)
    assert isinstance(failed.message, m.LeaseFailed)
    assert failed.message.lease == 1
    assert stopped == StopModelProcess(kill=False)
    assert harness.exit_process(1) == [StartModelProcess(SEED_2, 2)]

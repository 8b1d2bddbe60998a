"""A leader and a follower rank, each with its own backend; both are threads here, and the store is a dictionary.

These tests cover the calls that each rank makes, and failures on one or both ranks. tests/integration has real
processes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from birdie_zmq.engine.distributed import calls, follower, leader
from birdie_zmq.engine.distributed.follower import Follower, FollowerRunner
from birdie_zmq.engine.distributed.leader import CALLS_PER_FOLDER, BroadcastingBackend, GroupStore, Leader, check_mesh
from birdie_zmq.engine.distributed.process_group import LeaderLost, ProcessGroupError
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.mesh_shape import MeshShape
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.planning.prompt_planner import plan_prompts
from birdie_zmq.engine.planning.shape_buckets import Buckets, StepBudget
from birdie_zmq.engine.planning.steps import Dense, Extend, ScorePositions, Step
from birdie_zmq.errors import ModelCallError, ModelLoadError, OutOfDeviceMemory, ProcessGroupMismatch, UsageError
from birdie_zmq.models.decoder import build_model
from birdie_zmq.models.families.llama import plain_llama
from birdie_zmq.types import ModelSpec, RankInfo

MODEL = plain_llama(vocab_size=64, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=32, max_length=128)
PARAMS = MODEL.init_params(jax.random.key(0))
TOKENS = np.arange(1, 33, dtype=np.int32).reshape(1, 32)


class MemoryStore:
    """A key-value store shared by two threads, until it is closed."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._is_closed = False

    def set(self, key: str, value: bytes) -> None:
        with self._changed:
            self.values[key] = value
            self._changed.notify_all()

    def get(self, key: str, timeout_s: float) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or key in self.values, timeout_s)
            if self._is_closed:
                raise LeaderLost("closed")
            return self.values.get(key)

    def items_under(self, folder: str) -> dict[str, bytes]:
        with self._changed:
            return {key: value for key, value in self.values.items() if key.startswith(f"{folder}/")}

    def delete(self, folder: str) -> None:
        with self._changed:
            for key in [key for key in self.values if key.startswith(f"{folder}/")]:
                del self.values[key]

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def backend_of(returned: Any = None) -> JaxBackend:
    return JaxBackend(resolve(build_model(MODEL, PARAMS) if returned is None else returned), 128)


def is_runtime_error(error: BaseException) -> bool:
    return isinstance(error.__cause__, ConnectionError)


class LeaderAndFollower:
    """A leader, and a follower that runs its calls until the store is closed."""

    def __init__(self, ours: JaxBackend, theirs: JaxBackend) -> None:
        self.store = MemoryStore()
        store: GroupStore = self.store
        self.leader = Leader(store, RankInfo(2, 0))
        self.follower = Follower(store, RankInfo(2, 1), "gpu1")
        self.theirs = theirs
        self.backend = BroadcastingBackend(ours, self.leader, is_runtime_error)
        self.ends: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self._runner = FollowerRunner(theirs, self.follower, is_runtime_error, self.ends.put)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            self._runner.run()
        except ProcessGroupError as error:
            self.ends.put(error)

    def until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not true():
            assert time.monotonic() < end
            assert self.ends.empty(), self.ends.get()
            time.sleep(0.005)

    def end(self) -> BaseException:
        self.store.close()
        return self.ends.get(timeout=60)


def prefill_step(name: bytes) -> list[Step]:
    """Return a step that prefills a prefix into a cached state, and scores its tokens."""
    scored = ScorePositions()
    scored.add(0, range(31), TOKENS[0, 1:], 0)
    return [Step.of(TOKENS, 32, Extend(np.array([32], np.int32), b"", name, 32), scored)]


def test_follower_has_the_states_and_budget_of_the_leader() -> None:
    pair = LeaderAndFollower(backend_of(), backend_of())
    name = TOKENS.tobytes()
    used = [
        *prefill_step(name),
        Step.of(TOKENS, 32, Extend(np.array([32], np.int32), name, None, 64), ScorePositions()),
    ]
    pair.backend.start_plan(used)
    scores = pair.backend.submit(used[0]).result()
    assert scores.finite.all()
    assert list(pair.backend.cached_prefixes()) == [name]
    pair.until(lambda: list(pair.theirs.cached_prefixes()) == [name])
    assert pair.backend.halve_budget()
    assert not pair.backend.cached_prefixes()
    pair.until(lambda: not pair.theirs.cached_prefixes())
    pair.until(lambda: pair.theirs.budget == pair.backend.budget)
    assert isinstance(pair.end(), LeaderLost)


def test_rows_are_decoded_and_released_at_both_ranks() -> None:
    pair = LeaderAndFollower(backend_of(), backend_of())
    prompt = TOKENS[0, :9]
    assert pair.backend.generation_mode is not None
    (step,) = plan_prompts(pair.backend.generation_mode, [prompt], Buckets(64, 0, pair.backend.budget), {})
    pair.backend.start_plan([step], 64)
    decoding = pair.backend.decoding(2, 64)
    decoding.put(0, 0, np.append(prompt, decoding.prefill(step).tokens), sampled=1)
    decoding.decode(np.array([True, False]))
    decoding.narrow([0])
    ours = decoding.decode(np.array([True]))
    pair.until(lambda: pair._runner._decoding is not None and len(pair._runner._decoding._last) == 1)  # type: ignore[attr-defined]
    theirs = pair._runner._decoding
    assert theirs is not None
    pair.until(lambda: theirs._last[0] == ours.tokens[0, -1])  # type: ignore[attr-defined]
    pair.backend.start_plan([])
    pair.until(lambda: pair._runner._decoding is None)
    pair.end()


def test_calls_that_all_ranks_have_read_are_removed() -> None:
    pair = LeaderAndFollower(backend_of(), backend_of())
    for _ in range(20 * CALLS_PER_FOLDER):
        pair.backend.start_plan([])
    pair.until(lambda: pair.follower._received > 20 * CALLS_PER_FOLDER)
    for _ in range(CALLS_PER_FOLDER):
        pair.backend.start_plan([])
    assert len(pair.store.values) < 4 * CALLS_PER_FOLDER
    pair.end()


def failing_backend(error: type[Exception], cause: Exception | None = None) -> JaxBackend:
    """Return a backend whose steps all raise this error."""
    backend = backend_of()

    def submit(step: Step, top: int = 0) -> Any:
        raise error("no") from cause

    backend.submit = submit  # type: ignore[method-assign]
    return backend


def waiting_backend() -> JaxBackend:
    """Return a backend whose steps wait without end, as a step that waits for a peer does."""

    class Never:
        def result(self) -> Any:
            threading.Event().wait()

    backend = backend_of()
    backend.submit = lambda step, top=0: Never()  # type: ignore[method-assign]
    return backend


STEP = Step.of(TOKENS, 32, Dense(), ScorePositions())


@pytest.mark.parametrize("error", [OutOfDeviceMemory, ModelCallError])
def test_failure_at_all_ranks_is_a_model_error_and_the_group_continues(error: type[Exception]) -> None:
    pair = LeaderAndFollower(failing_backend(error), failing_backend(error))
    for _ in range(3):
        with pytest.raises(error):
            pair.backend.submit(STEP)
    pair.until(lambda: pair._runner._confirm_timer is None)
    assert not pair.store.items_under(f"{pair.leader.folder}/failed")
    assert pair.backend.halve_budget()
    pair.until(lambda: pair.theirs.budget == pair.backend.budget)
    pair.end()


def test_failure_at_one_rank_alone_ends_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "CONFIRM_TIMEOUT_S", 0.2)
    monkeypatch.setattr(follower, "CONFIRM_TIMEOUT_S", 0.2)
    ours = LeaderAndFollower(failing_backend(OutOfDeviceMemory), failing_backend(ModelCallError))
    with pytest.raises(ProcessGroupError, match="process 1 of the group failed in another way"):
        ours.backend.submit(STEP)
    alone = LeaderAndFollower(failing_backend(OutOfDeviceMemory), waiting_backend())
    with pytest.raises(ProcessGroupError, match="process 1 of the group did not fail where process 0 did"):
        alone.backend.submit(STEP)
    theirs = LeaderAndFollower(waiting_backend(), failing_backend(OutOfDeviceMemory))
    theirs.backend._leader.send(calls.Submit(calls.StepPayload.of(STEP)))
    assert "did not fail where this one did" in str(theirs.ends.get(timeout=60))


def test_runtime_error_ends_the_group() -> None:
    pair = LeaderAndFollower(
        failing_backend(ModelCallError, ConnectionResetError("gone")),
        failing_backend(ModelCallError, ConnectionResetError()),
    )
    with pytest.raises(ProcessGroupError):
        pair.backend.submit(STEP)
    assert isinstance(pair.ends.get(timeout=60), ProcessGroupError)


def test_load_failure_reaches_the_leader_with_its_class_rank_and_traceback() -> None:
    store = MemoryStore()
    leader, follower = Leader(store, RankInfo(2, 0)), Follower(store, RankInfo(2, 1), "gpu1")

    def refuse() -> None:
        with pytest.raises(LeaderLost):
            follower.report_load_failure(ModelLoadError("bad checkpoint", remote_traceback="line 3"))

    refusing = threading.Thread(target=refuse)
    refusing.start()
    error = leader.wait_for_load_failure()
    assert error is not None
    store.close()
    refusing.join(60)
    assert type(error) is ModelLoadError
    assert error.message == "process 1 of 2 of the group, at gpu1: bad checkpoint"
    assert error.remote_traceback == "line 3"


def test_followers_adopt_the_budget_of_the_leader_and_another_model_is_an_error() -> None:
    store = MemoryStore()
    leader, follower = Leader(store, RankInfo(2, 0)), Follower(store, RankInfo(2, 1), "gpu1")
    ours, theirs = backend_of(), backend_of()
    ours.budget = StepBudget(tokens=77)
    telling = threading.Thread(target=leader.wait_until_loaded, args=[ours])
    telling.start()
    follower.report_loaded(theirs)
    telling.join(60)
    assert theirs.budget == StepBudget(tokens=77)
    assert leader.wait_for_load_failure() is None  # all ranks have loaded the model
    leader.load(calls.Load("0", ModelSpec(tag="a", arguments="{}"), "api.py", "00"))
    leader.send_max_length(128)
    assert (follower.load().user_module, follower.max_length()) == ("api.py", 128)
    smaller = backend_of(((lambda params, tokens: params[tokens]), np.zeros((64, 64), np.float32)))
    follower.report_loaded(smaller)
    with pytest.raises(ProcessGroupMismatch, match=r"process 1 of the group has loaded another model.*'rows'.*'trees'"):
        leader.wait_until_loaded(ours)


def test_group_of_one_does_not_wait() -> None:
    store = MemoryStore()
    leader = Leader(store, RankInfo(1, 0))
    leader.wait_until_loaded(backend_of())
    for _ in range(10 * CALLS_PER_FOLDER):
        leader.send(calls.HalveBudget())
    assert len(store.values) < 2 * CALLS_PER_FOLDER


def test_each_group_has_its_own_keys() -> None:
    store = MemoryStore()
    first = Leader(store, RankInfo(2, 0))
    follower = Follower(store, RankInfo(2, 1), "gpu1")
    second = Leader(store, RankInfo(2, 0))
    second.send(calls.HalveBudget())
    first.send(calls.FailureConfirmed())
    assert follower.receive() == (0, calls.FailureConfirmed())


def test_mesh_must_use_all_devices_of_the_group() -> None:
    rank = RankInfo(2, 0)
    check_mesh(MeshShape(2, 4), 8, rank)
    for mesh in (None, MeshShape(model=4), MeshShape(4, 4)):
        with pytest.raises(UsageError, match=r"2 processes that have 8 devices together.*mesh=model:8"):
            check_mesh(mesh, 8, rank)

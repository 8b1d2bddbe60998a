"""A process leads and another follows, each with its own backend; here both are threads, and the store is a dictionary.

What crosses processes is under tests/integration; this is about who does what, and who fails with whom.
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
from birdie_zmq.engine.distributed.follower import Follower, Following
from birdie_zmq.engine.distributed.leader import FOLDER_CALLS, BroadcastingBackend, GroupStore, Leader, check_mesh
from birdie_zmq.engine.distributed.process_group import GroupBroken, LeaderLost, RankInfo
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.planning.prefill_planner import PrefillChunk
from birdie_zmq.engine.planning.shape_buckets import StepBudget
from birdie_zmq.engine.planning.steps import Dense, Extend, ScorePositions, Step
from birdie_zmq.errors import GroupMismatch, ModelCallError, ModelLoadError, OutOfDeviceMemory, UsageError
from birdie_zmq.models.decoder import model_of
from birdie_zmq.models.llama import Llama
from birdie_zmq.types import ModelSpec

MODEL = Llama(vocab_size=64, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=32, max_length=128)
PARAMS = MODEL.init_params(jax.random.key(0))
TOKENS = np.arange(1, 33, dtype=np.int32).reshape(1, 32)


class Shared:
    """Keys and bytes that two threads see, until it is closed."""

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

    def below(self, folder: str) -> dict[str, bytes]:
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
    return JaxBackend(resolve(model_of(MODEL, PARAMS) if returned is None else returned), 128)


def is_of_runtime(error: BaseException) -> bool:
    return isinstance(error.__cause__, ConnectionError)


class Pair:
    """A process that leads, and one that follows it until the end."""

    def __init__(self, ours: JaxBackend, theirs: JaxBackend) -> None:
        self.store = Shared()
        store: GroupStore = self.store
        self.leader = Leader(store, RankInfo(2, 0))
        self.follower = Follower(store, RankInfo(2, 1), "gpu1")
        self.theirs = theirs
        self.backend = BroadcastingBackend(ours, self.leader, is_of_runtime)
        self.ends: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self._following = Following(theirs, self.follower, is_of_runtime, self.ends.put)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            self._following.run()
        except GroupBroken as error:
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


def reading(name: bytes) -> list[Step]:
    """Reads a beginning into a state, and scores what it reads."""
    places = ScorePositions()
    places.add(0, np.arange(31), TOKENS[0, 1:], 0)
    return [Step.of(TOKENS, 32, Extend(np.array([32], np.int32), b"", name, 32), places)]


def test_a_follower_comes_to_have_the_states_and_the_budget_that_the_leader_has() -> None:
    pair = Pair(backend_of(), backend_of())
    name = TOKENS.tobytes()
    used = [*reading(name), Step.of(TOKENS, 32, Extend(np.array([32], np.int32), name, None, 64), ScorePositions())]
    pair.backend.open(used)
    scores = pair.backend.submit(used[0]).result()
    assert scores.finite.all()
    assert list(pair.backend.known(32)) == [name]
    pair.until(lambda: list(pair.theirs.known(32)) == [name])
    assert pair.backend.halve_budget()
    assert not pair.backend.known(32)
    pair.until(lambda: not pair.theirs.known(32))
    pair.until(lambda: pair.theirs.budget == pair.backend.budget)
    assert isinstance(pair.end(), LeaderLost)


def test_rows_are_continued_on_both_and_let_go_of_on_both() -> None:
    pair = Pair(backend_of(), backend_of())
    decoding = pair.backend.decoding(2, 64)
    prompt = TOKENS[0, :9]
    assert decoding.put(0, prompt, [PrefillChunk(0, 8, 16, is_kept=False)]) == [16]
    decoding.decode(np.array([True, False]))
    decoding.narrow([0])
    ours = decoding.decode(np.array([True]))
    pair.until(lambda: pair._following._decoding is not None and len(pair._following._decoding._last) == 1)  # type: ignore[attr-defined]
    theirs = pair._following._decoding
    assert theirs is not None
    pair.until(lambda: theirs._last[0] == ours.tokens[0, -1])  # type: ignore[attr-defined]
    pair.backend.open([])
    pair.until(lambda: pair._following._decoding is None)
    pair.end()


def test_what_all_have_read_is_removed_from_the_store() -> None:
    pair = Pair(backend_of(), backend_of())
    for _ in range(20 * FOLDER_CALLS):
        pair.backend.open([])
    pair.until(lambda: pair.follower._heard > 20 * FOLDER_CALLS)
    for _ in range(FOLDER_CALLS):
        pair.backend.open([])
    assert len(pair.store.values) < 4 * FOLDER_CALLS
    pair.end()


def failing(error: type[Exception], cause: Exception | None = None) -> JaxBackend:
    """A backend of which each step fails as said."""
    backend = backend_of()

    def submit(step: Step) -> Any:
        raise error("no") from cause

    backend.submit = submit  # type: ignore[method-assign]
    return backend


def waiting() -> JaxBackend:
    """A backend of which each step waits for ever, as one that waits for a peer does."""

    class Never:
        def result(self) -> Any:
            threading.Event().wait()

    backend = backend_of()
    backend.submit = lambda step: Never()  # type: ignore[method-assign]
    return backend


STEP = Step.of(TOKENS, 32, Dense(), ScorePositions())


@pytest.mark.parametrize("error", [OutOfDeviceMemory, ModelCallError])
def test_what_fails_everywhere_is_the_models_own_and_the_group_goes_on(error: type[Exception]) -> None:
    pair = Pair(failing(error), failing(error))
    for _ in range(3):
        with pytest.raises(error):
            pair.backend.submit(STEP)
    pair.until(lambda: pair._following._disagreed is None)
    assert not pair.store.below(f"{pair.leader.folder}/failed")
    assert pair.backend.halve_budget()
    pair.until(lambda: pair.theirs.budget == pair.backend.budget)
    pair.end()


def test_what_fails_at_one_process_alone_ends_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "AGREE_S", 0.2)
    monkeypatch.setattr(follower, "AGREE_S", 0.2)
    ours = Pair(failing(OutOfDeviceMemory), failing(ModelCallError))
    with pytest.raises(GroupBroken, match="process 1 of the group failed in another way"):
        ours.backend.submit(STEP)
    alone = Pair(failing(OutOfDeviceMemory), waiting())
    with pytest.raises(GroupBroken, match="process 1 of the group did not fail where process 0 did"):
        alone.backend.submit(STEP)
    theirs = Pair(waiting(), failing(OutOfDeviceMemory))
    theirs.backend._leader.tell(calls.Submit(calls.ToldStep.of(STEP)))
    assert "did not fail where this one did" in str(theirs.ends.get(timeout=60))


def test_an_error_of_the_runtime_ends_the_group_since_a_peer_may_be_gone() -> None:
    pair = Pair(failing(ModelCallError, ConnectionResetError("gone")), failing(ModelCallError, ConnectionResetError()))
    with pytest.raises(GroupBroken):
        pair.backend.submit(STEP)
    assert isinstance(pair.ends.get(timeout=60), GroupBroken)


def test_a_refusal_reaches_the_process_that_leads_with_its_class_place_and_traceback() -> None:
    store = Shared()
    leader, follower = Leader(store, RankInfo(2, 0)), Follower(store, RankInfo(2, 1), "gpu1")

    def refuse() -> None:
        with pytest.raises(LeaderLost):
            follower.refuse(ModelLoadError("no room", remote_traceback="line 3"))

    refusing = threading.Thread(target=refuse)
    refusing.start()
    error = leader.refusal()
    assert error is not None
    store.close()
    refusing.join(60)
    assert type(error) is ModelLoadError
    assert error.message == "process 1 of 2 of the group, at gpu1: no room"
    assert error.remote_traceback == "line 3"


def test_the_budget_is_the_leaders_and_another_model_is_an_error() -> None:
    store = Shared()
    leader, follower = Leader(store, RankInfo(2, 0)), Follower(store, RankInfo(2, 1), "gpu1")
    ours, theirs = backend_of(), backend_of()
    ours.budget = StepBudget(tokens=77)
    telling = threading.Thread(target=leader.loaded, args=[ours])
    telling.start()
    follower.loaded(theirs)
    telling.join(60)
    assert theirs.budget == StepBudget(tokens=77)
    assert leader.refusal() is None  # nobody can refuse any more
    leader.load(calls.Load("0", ModelSpec(tag="a", arguments="{}"), "page", "00"))
    leader.prepared(128)
    assert (follower.load().page, follower.max_length()) == ("page", 128)
    smaller = backend_of(((lambda params, tokens: params[tokens]), np.zeros((64, 64), np.float32)))
    follower.loaded(smaller)
    with pytest.raises(GroupMismatch, match=r"process 1 of the group has loaded another model.*'rows'.*'branches'"):
        leader.loaded(ours)


def test_a_group_of_one_waits_for_nobody() -> None:
    store = Shared()
    leader = Leader(store, RankInfo(1, 0))
    leader.loaded(backend_of())
    for _ in range(10 * FOLDER_CALLS):
        leader.tell(calls.Halve())
    assert len(store.values) < 2 * FOLDER_CALLS


def test_a_group_of_another_time_has_other_keys() -> None:
    store = Shared()
    first = Leader(store, RankInfo(2, 0))
    follower = Follower(store, RankInfo(2, 1), "gpu1")
    second = Leader(store, RankInfo(2, 0))
    second.tell(calls.Halve())
    first.tell(calls.Agreed())
    assert follower.hear() == (0, calls.Agreed())


def test_the_mesh_of_a_group_is_all_its_devices() -> None:
    place = RankInfo(2, 0)
    check_mesh(8, 8, place)
    for size in (None, 4, 16):
        with pytest.raises(UsageError, match=r"2 processes that have 8 devices together.*mesh=model:8"):
            check_mesh(size, 8, place)

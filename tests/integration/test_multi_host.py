"""One model on a process group of two, connected as two hosts would be, and recovery if one of the processes dies."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
import pytest
from lm_eval.api.model import CacheHook

from birdie_zmq.errors import ProcessGroupIncomplete, ProcessGroupMismatch, UsageError
from birdie_zmq.models.families.llama import plain_llama
from birdie_zmq.models.weights import save_checkpoint
from birdie_zmq.settings import ClientSettings
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import Program, Programs, descendants, wait_until
from tests.model_files import sharded

PAIRS = [("The mill of Oldbrook", " was built"), ("The mill", " of grey stone"), ("Una", " built mill 3")]
TEXTS = ["The mill of Oldbrook was built of grey stone.", "Una built it."]
PROMPTS = ["The mill of Oldbrook", "Una"]
GREEDY = {"max_gen_toks": 6, "until": []}
SAMPLED = GREEDY | {"do_sample": True, "temperature": 1.0, "top_p": 0.9}
PENALISED = GREEDY | {
    "repetition_penalty": 1.6,
    "frequency_penalty": 0.5,
    "suppress_tokens": [32, 97],
    "min_new_tokens": 3,
}
ATOL = 1e-4
"""Nats; the same tolerance as for several devices in tests/integration/test_mesh.py."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def model_process(worker: Program) -> psutil.Process:
    """Return the only child process of a worker."""
    (process,) = descendants(worker.process.pid)
    return process


@dataclass
class ProcessGroup:
    """A broker and the two workers of a process group."""

    programs: Programs
    endpoint: str
    coordinator: str
    leader: Program
    follower: Program

    def open_model(self, model: Path | str, mesh: str | None = "model:2", **model_args: Any) -> BirdieZMQ:
        model_args |= {} if mesh is None else {"mesh": mesh}
        return BirdieZMQ(model_tag=str(model), endpoint=self.endpoint, **model_args)


def start_group(programs: Programs, model_file: Path, *options: str, follower_file: Path | None) -> ProcessGroup:
    """Start a process group with one device per process; without ``follower_file``, start only rank 0."""
    _, endpoint = programs.broker()
    coordinator = f"127.0.0.1:{free_port()}"
    common = ["-m", "workers.jax_worker", "--device", "cpu", "--coordinator", coordinator, "--num-processes", "2"]
    leader = programs.start(*common, "--connect", endpoint, "--api", str(model_file), "--process-id", "0", *options)
    follower = leader
    if follower_file is not None:
        follower = programs.start(*common, "--api", str(follower_file), "--process-id", "1")
    leader.wait_for("registered with the broker")
    return ProcessGroup(programs, endpoint, coordinator, leader, follower)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory, model_files: Path) -> Iterator[ProcessGroup]:
    started = Programs(tmp_path_factory.mktemp("group"))
    yield start_group(started, model_files / "sharded.py", follower_file=model_files / "sharded.py")
    started.end()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a small model, all of whose tensors can be sharded over two devices."""
    folder = tmp_path_factory.mktemp("model")
    model = plain_llama(vocab_size=258, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64, max_length=128)
    save_checkpoint(folder, model, model.init_params(jax.random.key(0)))
    return folder


def scores_of(lm: BirdieZMQ) -> list[float]:
    pairs = lm.loglikelihood([instance("loglikelihood", pair, 0) for pair in PAIRS], disable_tqdm=True)
    rolling = [instance("loglikelihood_rolling", (text,), 0) for text in TEXTS]
    return [score for score, _ in pairs] + lm.loglikelihood_rolling(rolling, disable_tqdm=True)


def generate(lm: BirdieZMQ, gen_kwargs: dict[str, Any]) -> list[str]:
    prompts = [instance("generate_until", (prompt, dict(gen_kwargs)), 0) for prompt in PROMPTS]
    return lm.generate_until(prompts, disable_tqdm=True)


@pytest.fixture(scope="module")
def one_process(checkpoint: Path) -> Iterator[BirdieZMQ]:
    """Open the same model in one process on one device."""
    model = sharded.load_model(str(checkpoint))
    with BirdieZMQ(model=model, tokenizer=sharded.Bytes()) as lm:
        yield lm


def test_process_group_equals_one_process_and_switches_models_together(
    group: ProcessGroup, one_process: BirdieZMQ, checkpoint: Path
) -> None:
    with group.open_model(checkpoint) as lm:
        np.testing.assert_allclose(scores_of(lm), scores_of(one_process), rtol=0, atol=ATOL)
        for gen_kwargs in (GREEDY, SAMPLED, PENALISED):
            assert generate(lm, gen_kwargs) == generate(one_process, gen_kwargs)
        assert len(lm.get_model_info()["model_devices"]) == 2
    # A coordinator with a loopback address must not listen on other interfaces.
    listening = [c.laddr for c in model_process(group.leader).net_connections() if c.status == psutil.CONN_LISTEN]
    found = {ip.removeprefix("::ffff:") for ip, port in listening if group.coordinator.endswith(f":{port}")}
    assert found == {"127.0.0.1"}
    before = {model_process(group.leader), model_process(group.follower)}
    with group.open_model(checkpoint, "data:2") as lm:
        np.testing.assert_allclose(scores_of(lm), scores_of(one_process), rtol=0, atol=ATOL)
    assert not before & {model_process(group.leader), model_process(group.follower)}


@pytest.mark.parametrize("killed_role", ["follower", pytest.param("leader", marks=pytest.mark.chaos)])
def test_killed_process_restarts_the_group_and_loses_no_answer(
    group: ProcessGroup, one_process: BirdieZMQ, checkpoint: Path, killed_role: str
) -> None:
    texts = [
        f"Mill {number} of Oldbrook was built {'of stone ' * (number % 7)}by {killed_role}." for number in range(48)
    ]
    requests = [instance("loglikelihood_rolling", (text,), 0) for text in texts]
    expected = one_process.loglikelihood_rolling(requests, disable_tqdm=True)
    with group.open_model(checkpoint, batch_rows=1, client_settings=ClientSettings(batch_items=8)) as lm:
        lm.loglikelihood_rolling(requests[:1], disable_tqdm=True)
        before = [model_process(group.leader), model_process(group.follower)]
        counter, found = _AnswerCounter(), list[float]()
        lm.set_cache_hook(counter)
        run = threading.Thread(target=lambda: found.extend(lm.loglikelihood_rolling(requests, disable_tqdm=True)))
        run.start()
        wait_until(lambda: counter.count >= 4, "some answers")
        before[killed_role == "follower"].kill()
        answered = counter.count
        run.join(120)
    assert answered < len(texts)
    assert counter.count == len(texts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)
    after = [model_process(group.leader), model_process(group.follower)]
    assert not set(before) & set(after)
    group.leader.wait_for(r"exited unexpectedly: .* \(it is rank 0 of a process group of 2")
    group.follower.wait_for("process 1 of 2 has exited, .*waits for process 0")


class _AnswerCounter(CacheHook):
    """Counts the answers that lm_eval receives."""

    def __init__(self) -> None:
        super().__init__(None)
        self.count = 0

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.count += 1


def test_process_group_without_a_mesh_over_all_devices_is_rejected(group: ProcessGroup, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=r"group of 2 processes that have 2 devices together.*mesh=model:2"):
        group.open_model(checkpoint, mesh=None)


def test_different_model_file_of_a_follower_is_reported(programs: Programs, model_files: Path, tmp_path: Path) -> None:
    model_file = tmp_path / "page.py"
    model_file.write_text("from birdie_zmq.models import load_model, load_tokenizer\n", encoding="utf-8")
    group = start_group(programs, model_files / "sharded.py", follower_file=model_file)
    with pytest.raises(
        ProcessGroupMismatch, match=r"process 1 of 2.*with .*sharded.py .*this one with .*page.py .*--api"
    ):
        group.open_model("demo")


def test_incomplete_process_group_is_reported_after_the_timeout(programs: Programs, model_files: Path) -> None:
    group = start_group(programs, model_files / "sharded.py", "--initialization-timeout", "4", follower_file=None)
    with pytest.raises(ProcessGroupIncomplete, match=r"not all 2 processes .* within 4 s \(1 connected\)"):
        group.open_model("demo")
    assert re.search(r"waiting for all 2 processes of the group at 127.0.0.1:\d+ \(1 connected\)", group.leader.output)

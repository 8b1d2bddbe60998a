"""One model on two processes that meet as two hosts do; and what becomes of a run when one of them dies."""

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
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook

from birdie_zmq.errors import GroupIncomplete, GroupMismatch, UsageError
from birdie_zmq.models.llama import Llama
from birdie_zmq.models.weights import save_checkpoint
from birdie_zmq.settings import ClientSettings
from harness_model import BirdieZMQ
from tests.integration.conftest import Program, Programs, descendants, wait_until
from tests.model_files import sharded

PAIRS = [("The mill of Oldbrook", " was built"), ("The mill", " of grey stone"), ("Una", " built mill 3")]
TEXTS = ["The mill of Oldbrook was built of grey stone.", "Una built it."]
PROMPTS = ["The mill of Oldbrook", "Una"]
GREEDY = {"max_gen_toks": 6, "until": []}
DRAWN = GREEDY | {"do_sample": True, "temperature": 1.0, "top_p": 0.9}
ATOL = 1e-4
"""Nats; as tests/integration/test_mesh.py allows several devices."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def model_process(worker: Program) -> psutil.Process:
    """The model process of a worker, which has one."""
    (process,) = descendants(worker.process.pid)
    return process


@dataclass
class Group:
    """A broker, and the two workers of a group."""

    programs: Programs
    endpoint: str
    coordinator: str
    leads: Program
    follows: Program

    def client(self, model: Path | str, mesh: str | None = "model:2", **words: Any) -> BirdieZMQ:
        words |= {} if mesh is None else {"mesh": mesh}
        return BirdieZMQ(model_tag=str(model), endpoint=self.endpoint, **words)


def start_group(programs: Programs, page: Path, *options: str, other_page: Path | None) -> Group:
    """A group whose processes have a device each; None starts no process but the first."""
    _, endpoint = programs.broker()
    coordinator = f"127.0.0.1:{free_port()}"
    common = ["-m", "workers.jax_worker", "--device", "cpu", "--coordinator", coordinator, "--num-processes", "2"]
    leads = programs.start(*common, "--connect", endpoint, "--api", str(page), "--process-id", "0", *options)
    follows = leads
    if other_page is not None:
        follows = programs.start(*common, "--api", str(other_page), "--process-id", "1")
    leads.wait_for("registered with the broker")
    return Group(programs, endpoint, coordinator, leads, follows)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory, pages: Path) -> Iterator[Group]:
    started = Programs(tmp_path_factory.mktemp("group"))
    yield start_group(started, pages / "sharded.py", other_page=pages / "sharded.py")
    started.end()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, all of which two devices can divide."""
    folder = tmp_path_factory.mktemp("model")
    model = Llama(vocab_size=258, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64, max_length=128)
    save_checkpoint(folder, model, model.init_params(jax.random.key(0)))
    return folder


def scored(lm: BirdieZMQ) -> list[float]:
    pairs = lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in PAIRS], disable_tqdm=True)
    rolling = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in TEXTS]
    return [score for score, _ in pairs] + lm.loglikelihood_rolling(rolling, disable_tqdm=True)


def continued(lm: BirdieZMQ, how: dict[str, Any]) -> list[str]:
    prompts = [Instance("generate_until", {}, (prompt, dict(how)), 0) for prompt in PROMPTS]
    return lm.generate_until(prompts, disable_tqdm=True)


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> Iterator[BirdieZMQ]:
    """The same model in one process on one device."""
    model = sharded.load_model(str(checkpoint))
    with BirdieZMQ(model=model, tokenizer=sharded.Bytes()) as lm:
        yield lm


def test_two_processes_answer_as_one_does_and_change_models_together(
    group: Group, alone: BirdieZMQ, checkpoint: Path
) -> None:
    with group.client(checkpoint) as lm:
        np.testing.assert_allclose(scored(lm), scored(alone), rtol=0, atol=ATOL)
        for how in (GREEDY, DRAWN):
            assert continued(lm, how) == continued(alone, how)
        assert len(lm.get_model_info()["model_devices"]) == 2
    # A coordinator that is named by a loopback address is for this machine alone.
    listening = [c.laddr for c in model_process(group.leads).net_connections() if c.status == psutil.CONN_LISTEN]
    found = {ip.removeprefix("::ffff:") for ip, port in listening if group.coordinator.endswith(f":{port}")}
    assert found == {"127.0.0.1"}
    before = {model_process(group.leads), model_process(group.follows)}
    with group.client(checkpoint, "data:2") as lm:
        np.testing.assert_allclose(scored(lm), scored(alone), rtol=0, atol=ATOL)
    assert not before & {model_process(group.leads), model_process(group.follows)}


@pytest.mark.parametrize("who", ["follows", pytest.param("leads", marks=pytest.mark.chaos)])
def test_a_process_that_is_killed_ends_the_group_which_starts_again_and_loses_no_answer(
    group: Group, alone: BirdieZMQ, checkpoint: Path, who: str
) -> None:
    texts = [f"Mill {number} of Oldbrook was built {'of stone ' * (number % 7)}by {who}." for number in range(48)]
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    expected = alone.loglikelihood_rolling(requests, disable_tqdm=True)
    with group.client(checkpoint, batch_rows=1, client_settings=ClientSettings(batch_items=8)) as lm:
        lm.loglikelihood_rolling(requests[:1], disable_tqdm=True)
        before = [model_process(group.leads), model_process(group.follows)]
        cache, found = _Cache(), list[float]()
        lm.set_cache_hook(cache)
        run = threading.Thread(target=lambda: found.extend(lm.loglikelihood_rolling(requests, disable_tqdm=True)))
        run.start()
        wait_until(lambda: cache.count >= 4, "some answers")
        before[who == "follows"].kill()
        answered = cache.count
        run.join(120)
    assert answered < len(texts)
    assert cache.count == len(texts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)
    after = [model_process(group.leads), model_process(group.follows)]
    assert not set(before) & set(after)
    group.leads.wait_for(r"ended by itself: .* \(it leads a group of 2 processes")
    group.follows.wait_for("process 1 of 2 has ended, .*waits for process 0")


class _Cache(CacheHook):
    def __init__(self) -> None:
        super().__init__(None)
        self.count = 0

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.count += 1


def test_a_group_holds_one_model_on_all_its_devices(group: Group, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=r"group of 2 processes that have 2 devices together.*mesh=model:2"):
        group.client(checkpoint, mesh=None)


def test_a_host_with_another_page_is_named_at_the_prompt(programs: Programs, pages: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.py"
    page.write_text("from birdie_zmq.models import load_model, load_tokenizer\n", encoding="utf-8")
    group = start_group(programs, pages / "sharded.py", other_page=page)
    with pytest.raises(GroupMismatch, match=r"process 1 of 2.*by .*sharded.py .*this one by .*page.py .*--api"):
        group.client("demo")


def test_a_group_that_is_not_complete_is_an_error_in_time(programs: Programs, pages: Path) -> None:
    group = start_group(programs, pages / "sharded.py", "--initialization-timeout", "4", other_page=None)
    with pytest.raises(GroupIncomplete, match=r"not all 2 processes .* within 4 s \(1 is there\)"):
        group.client("demo")
    assert re.search(r"waiting for all 2 processes of the group at 127.0.0.1:\d+ \(1 is there\)", group.leads.output)

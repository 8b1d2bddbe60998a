"""One model on two processes, each with two devices, that meet as two hosts do; and what becomes of a run when one dies."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook

from birdie_zmq import models
from birdie_zmq.config import ClientSettings
from birdie_zmq.errors import GroupIncomplete, GroupMismatch, UsageError
from harness_model import BirdieZMQ
from tests.integration.conftest import Program, Programs, descendants, wait_until

DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}

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

    def client(self, mesh: str | None = "model:4", **words: Any) -> BirdieZMQ:
        words |= {} if mesh is None else {"mesh": mesh}
        return BirdieZMQ(model_tag="demo", endpoint=self.endpoint, **words)


def start_group(programs: Programs, *options: str, follower: Sequence[str] | None = ("--built-in",)) -> Group:
    _, endpoint = programs.broker()
    coordinator = f"127.0.0.1:{free_port()}"
    common = ["-m", "workers.jax_worker", "--device", "cpu", "--coordinator", coordinator, "--num-processes", "2"]
    command = [*common, "--connect", endpoint, "--built-in", "--process-id", "0", *options]
    leads = programs.start(*command, **DEVICES)
    follows = leads
    if follower is not None:
        follows = programs.start(*common, "--process-id", "1", *follower, **DEVICES)
    leads.wait_for("registered with the broker")
    return Group(programs, endpoint, coordinator, leads, follows)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    started = Programs(tmp_path_factory.mktemp("group"))
    yield start_group(started)
    started.end()


def asked(lm: BirdieZMQ) -> dict[str, Any]:
    pairs = lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in PAIRS], disable_tqdm=True)
    rolling = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in TEXTS]
    found: dict[str, Any] = {
        "scores": [score for score, _ in pairs] + lm.loglikelihood_rolling(rolling, disable_tqdm=True),
        "greedy": [greedy for _, greedy in pairs],
    }
    for name, how in (("continued", GREEDY), ("drawn", DRAWN)):
        prompts = [Instance("generate_until", {}, (prompt, dict(how)), 0) for prompt in PROMPTS]
        found[name] = lm.generate_until(prompts, disable_tqdm=True)
    return found


@pytest.fixture(scope="module")
def alone() -> Iterator[BirdieZMQ]:
    """The same model in one process on one device."""
    model, tokenizer = models.load_model("demo"), models.load_tokenizer("demo")
    with BirdieZMQ(model=model, tokenizer=tokenizer) as lm:
        yield lm


def test_two_processes_answer_as_one_does_and_change_models_together(group: Group, alone: BirdieZMQ) -> None:
    expected = asked(alone)
    for mesh in ("model:4", "data:2/model:2"):
        before = {psutil.Process(p.process.pid): descendants(p.process.pid) for p in (group.leads, group.follows)}
        with group.client(mesh) as lm:
            found = asked(lm)
            info = lm.get_model_info()
        np.testing.assert_allclose(found.pop("scores"), expected["scores"], rtol=0, atol=ATOL)
        assert found == {name: value for name, value in expected.items() if name != "scores"}
        assert len(info["model_devices"]) == 4
        after = {model_process(group.leads), model_process(group.follows)}
        if mesh != "model:4":  # each host has another process for another model
            assert not after & {process for processes in before.values() for process in processes}


@pytest.mark.parametrize("who", ["follows", "leads"])
def test_a_process_that_is_killed_ends_the_group_which_starts_again_and_loses_no_answer(
    group: Group, alone: BirdieZMQ, who: str
) -> None:
    texts = [f"Mill {number} of Oldbrook was built {'of grey stone ' * (number % 7)}by {who}." for number in range(48)]
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    expected = alone.loglikelihood_rolling(requests, disable_tqdm=True)
    with group.client(batch_rows=1, client_settings=ClientSettings(batch_items=8)) as lm:
        lm.loglikelihood_rolling(requests[:1], disable_tqdm=True)
        before = [model_process(group.leads), model_process(group.follows)]
        cache, found = _Cache(), list[float]()
        lm.set_cache_hook(cache)
        run = threading.Thread(target=lambda: found.extend(lm.loglikelihood_rolling(requests, disable_tqdm=True)))
        run.start()
        wait_until(lambda: cache.count >= 4, "some answers")
        before[who == "follows"].kill()
        answered = cache.count
        killed_at = time.monotonic()
        run.join(120)
        print(f"{who}: {answered} of 48 were answered; all were {time.monotonic() - killed_at:.1f} s later")
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


def test_a_group_holds_one_model_on_all_its_devices(group: Group) -> None:
    with pytest.raises(UsageError, match="group of 2 processes that have 4 devices together.*mesh=model:4"):
        group.client(mesh=None)
    with pytest.raises(UsageError, match="mesh= in model_args has 2 devices.*4 devices together"):
        group.client(mesh="model:2")


def test_a_host_with_another_page_is_named_at_the_prompt(programs: Programs, tmp_path: Path) -> None:
    page = tmp_path / "page.py"
    page.write_text("from birdie_zmq.models import load_model, load_tokenizer\n", encoding="utf-8")
    group = start_group(programs, follower=["--api", str(page)])
    with pytest.raises(GroupMismatch, match="process 1 of 2.*birdie_zmq.models .*this one by .*page.py .*--api"):
        group.client()


def test_a_group_that_is_not_complete_is_an_error_in_time(programs: Programs) -> None:
    group = start_group(programs, "--initialization-timeout", "4", follower=None)
    with pytest.raises(GroupIncomplete, match=r"not all 2 processes .* within 4 s \(1 is there\)"):
        group.client()
    assert re.search(r"waiting for all 2 processes of the group at 127.0.0.1:\d+ \(1 is there\)", group.leads.output)

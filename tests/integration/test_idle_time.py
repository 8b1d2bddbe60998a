"""The wall time of a call is the sum of computing, compiling and idling, with a tokenizer that the device waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from birdie_zmq.types import RunStatistics
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.test_bench import bench
from tests.model_files import slow_tokenizer

COUNT = 800
TOLERANCE = 0.05
TEXTS = [f"{number} owls and a cat sat on the mat" for number in range(2 * COUNT)]


def in_process(model_files: Path) -> BirdieZMQ:
    del model_files
    return BirdieZMQ(model=slow_tokenizer.load_model("slow"), tokenizer=slow_tokenizer.load_tokenizer("slow"))


def jax_worker(model_files: Path) -> BirdieZMQ:
    return BirdieZMQ(model_tag="slow", device="cpu", api=str(model_files / "slow_tokenizer.py"))


def numpy_worker(model_files: Path) -> BirdieZMQ:
    engine = str(model_files / "numpy_engine.py")
    return BirdieZMQ(model_tag="slow", device="cpu", api=str(model_files / "slow_tokenizer.py"), engine=engine)


@pytest.fixture(params=[in_process, jax_worker, numpy_worker], scope="module")
def lm(request: pytest.FixtureRequest, model_files: Path) -> Iterator[BirdieZMQ]:
    """Provide a model with a slow tokenizer, in this process and in workers with two engines."""
    make: Callable[[Path], BirdieZMQ] = request.param
    with make(model_files) as lm:
        yield lm


def report_of(lm: BirdieZMQ) -> RunStatistics:
    lm.get_model_info()
    return lm._description.report


def score(lm: BirdieZMQ, begin: int) -> None:
    arguments = [(text[:4], text[4:]) for text in TEXTS[begin : begin + COUNT]]
    lm.loglikelihood(instances("loglikelihood", arguments), disable_tqdm=True)


def generate(lm: BirdieZMQ, begin: int) -> None:
    arguments = [(text, {"until": [], "max_gen_toks": 2}) for text in TEXTS[begin : begin + COUNT]]
    lm.generate_until(instances("generate_until", arguments), disable_tqdm=True)


def instances(kind: Any, arguments: list[Any]) -> list[Instance]:
    return [instance(kind, argument, number) for number, argument in enumerate(arguments)]


def check_wall_time(lm: BirdieZMQ, call: Callable[[BirdieZMQ, int], None], begin: int) -> None:
    """Check the reported times against the wall time of calls of the run.

    The call takes longer where other load keeps the client, the broker or the agent from running, so a few are tried.
    """
    shares: list[float] = []
    while not shares or (max(shares) < 1 - TOLERANCE and len(shares) < 5):
        shares.append(reported_share(lm, call, begin))
    assert 1 - TOLERANCE <= max(shares) <= 1.001, shares


def reported_share(lm: BirdieZMQ, call: Callable[[BirdieZMQ, int], None], begin: int) -> float:
    """Return the sum of the reported times as a share of the wall time of a call."""
    before = report_of(lm)
    began = time.monotonic()
    call(lm, begin)
    wall_s = time.monotonic() - began
    after = report_of(lm)

    computing, compiling, idle, encoding = (
        getattr(after, f"{name}_seconds") - getattr(before, f"{name}_seconds")
        for name in ("step", "compile", "idle", "tokenizer")
    )
    assert encoding >= COUNT * slow_tokenizer.ENCODE_S
    assert encoding <= computing + compiling + idle
    assert idle >= encoding - computing - compiling, "encoding that nothing hides"
    return float((computing + compiling + idle) / wall_s)


@pytest.mark.parametrize("call", [score, generate])
@pytest.mark.parametrize("begin", [0, COUNT], ids=["with compilation", "compiled"])
def test_wall_time_is_computing_compiling_and_idling(
    lm: BirdieZMQ, call: Callable[[BirdieZMQ, int], None], begin: int
) -> None:
    check_wall_time(lm, call, begin)


def test_bench_names_a_slow_tokenizer(model_files: Path) -> None:
    done = bench("--model_args", f"model_tag=slow,api={model_files / 'slow_tokenizer.py'}", "--workloads", "choice")

    assert done.returncode == 0, done.stderr
    assert "of choice, 0-shot: it waited for the tokenizer, which took" in done.stdout

"""Compare lm_eval's hf backend and birdie-zmq on the same requests, and report the largest differences."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from lm_eval.api.instance import Instance

from harness_model import BirdieZMQ
from tests.instances import instance, rolling_arguments

TOLERANCE = 1e-4
"""Nats."""

Kind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]

_worst: dict[str, tuple[int, float]] = {}


def instances(kind: Kind, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    """Return requests as lm_eval creates them; a rolling one has one argument, its text."""
    if kind == "loglikelihood_rolling":
        arguments = [rolling_arguments(*argument) for argument in arguments]
    return [instance(kind, argument, index) for index, argument in enumerate(arguments)]


def hf(directory: Path, auto_class: str = "AutoModelForCausalLM", /, **keywords: Any) -> Any:
    """Load a checkpoint in lm_eval's hf backend, in float32 on the CPU.

    Args:
        directory: The checkpoint.
        auto_class: transformers' class that loads it. The backend itself only has causal language models.
        **keywords: Arguments of the backend.
    """
    import transformers
    from lm_eval.models.huggingface import HFLM

    backend = type("Backend", (HFLM,), {"AUTO_MODEL_CLASS": getattr(transformers, auto_class)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and transformers
        keywords = {"dtype": "float32", "attn_implementation": "eager", **keywords}
        return backend(pretrained=str(directory), device="cpu", batch_size=1, **keywords)


@contextmanager
def ours(directory: Path, **keywords: Any) -> Iterator[BirdieZMQ]:
    """Load a checkpoint in birdie-zmq, with an embedded broker and worker."""
    with BirdieZMQ(model_tag=str(directory), device="cpu", **{"dtype": "float32", **keywords}) as model:
        yield model


def assert_same(
    family: str,
    theirs: Sequence[tuple[float, bool]],
    mine: Sequence[tuple[float, bool]],
    texts: Sequence[Any],
    windows: Sequence[int] | None = None,
) -> None:
    """Compare two lists of log-likelihoods, and record the largest difference.

    A rolling log-likelihood is a sum over windows of the model's length. hf adds each window up in float32 (a step of
    6e-5 at -800 nats), so the tolerance is per window.
    """
    assert len(theirs) == len(mine) == len(texts)
    counts = windows or [1] * len(texts)
    gaps = [abs(a[0] - b[0]) / windows_of_text for a, b, windows_of_text in zip(theirs, mine, counts, strict=True)]
    _record(family, len(gaps), max(gaps))
    failures = [(text, a, b) for text, a, b, gap in zip(texts, theirs, mine, gaps, strict=True) if not gap <= TOLERANCE]
    assert not failures
    assert [a[1] for a in theirs] == [b[1] for b in mine]


def _record(family: str, count: int, gap: float) -> None:
    """Add comparisons to those of a family, with their largest difference."""
    before, worst = _worst.get(family, (0, 0.0))
    _worst[family] = (before + count, max(worst, gap))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Pass the differences of this xdist worker, if it is one, to the main process."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["largest_differences"] = [[family, *found] for family, found in _worst.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the differences of an xdist worker."""
    for found in getattr(node, "workeroutput", {}).get("largest_differences", []):
        _record(*found)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the largest difference of each family."""
    if _worst:
        terminalreporter.section("largest difference from lm_eval's hf backend, float32, nats")
        for family, (count, worst) in sorted(_worst.items()):
            terminalreporter.write_line(f"{family:12} {count:5} log-likelihoods   {worst:.1e}")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for the checkpoints of a test module."""
    return tmp_path_factory.mktemp("checkpoints")

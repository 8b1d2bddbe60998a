"""lm_eval's hf backend and ours, asked the same; a table of the largest differences at the end."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from lm_eval.api.instance import Instance

from harness_model import BirdieZMQ

TOLERANCE = 1e-4
"""Nats."""

Kind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]

_worst: dict[str, tuple[int, float]] = {}


def instances(kind: Kind, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    """Requests as lm_eval makes them."""
    return [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]


def hf(directory: Path, **keywords: Any) -> Any:
    """lm_eval's own backend on a checkpoint, in float32 on the CPU."""
    from lm_eval.models.huggingface import HFLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's and transformers' own
        keywords = {"dtype": "float32", "attn_implementation": "eager", **keywords}
        return HFLM(pretrained=str(directory), device="cpu", batch_size=1, **keywords)


@contextmanager
def ours(directory: Path, **keywords: Any) -> Iterator[BirdieZMQ]:
    """Our backend on a checkpoint, with a broker and worker of its own."""
    with BirdieZMQ(model_tag=str(directory), device="cpu", **{"dtype": "float32", **keywords}) as model:
        yield model


def assert_same(
    family: str,
    theirs: Sequence[tuple[float, bool]],
    mine: Sequence[tuple[float, bool]],
    texts: Sequence[Any],
    windows: Sequence[int] | None = None,
) -> None:
    """Hold two lists of log-likelihoods against each other, and remember the largest difference.

    A rolled text is a sum over windows of the model's length, each of which hf adds up in float32 (a step of 6e-5 at
    -800 nats); the tolerance is for each of them.
    """
    assert len(theirs) == len(mine) == len(texts)
    parts = windows or [1] * len(texts)
    count, worst = _worst.get(family, (0, 0.0))
    gaps = [abs(a[0] - b[0]) / part for a, b, part in zip(theirs, mine, parts, strict=True)]
    _worst[family] = (count + len(gaps), max([worst, *gaps]))
    far = [(text, a, b) for text, a, b, gap in zip(texts, theirs, mine, gaps, strict=True) if not gap <= TOLERANCE]
    assert not far
    assert [a[1] for a in theirs] == [b[1] for b in mine]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table that the comparison is about."""
    if _worst:
        terminalreporter.section("largest difference from lm_eval's hf backend, float32, nats")
        for family, (count, worst) in sorted(_worst.items()):
            terminalreporter.write_line(f"{family:12} {count:5} log-likelihoods   {worst:.1e}")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the checkpoints of a module."""
    return tmp_path_factory.mktemp("checkpoints")

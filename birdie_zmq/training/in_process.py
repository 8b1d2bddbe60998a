"""Evaluates the params of a training loop in the process that trains."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from birdie_zmq.tools.watch.results import metrics_of, scalars
from birdie_zmq.training.common import Log, check_every

if TYPE_CHECKING:
    from birdie_zmq.harness.model import BirdieZMQ


class InProcessEvaluation:
    """Evaluates the params of every N-th step in this process.

    The first evaluation compiles; later ones only replace the weights. The states of Python's, NumPy's and torch's random
    generators, which lm_eval seeds, are those of the loop again afterwards.

    Args:
        lm: The model, created with ``BirdieZMQ(model=…, tokenizer=…)``. It stays the caller's.
        log: Receives the metrics.
        every: Number of steps between two evaluations.
        **evaluate: The arguments of `lm_eval.simple_evaluate`, such as ``tasks``.

    Raises:
        UsageError: `every` is not above 0.
    """

    def __init__(self, lm: BirdieZMQ, log: Log, *, every: int, **evaluate: Any) -> None:
        self._lm = lm
        self._log = log
        self._every = check_every(every)
        self._evaluate = evaluate

    def __call__(self, step: int, params: Any = None) -> Mapping[str, float] | None:
        """Evaluate the params if it is time, and return their metrics; else return None.

        Args:
            step: The step.
            params: The params, with the structure, shapes and dtypes of those that `lm` was created with: for NNX,
                ``nnx.state(model)``. None if the model's function reads its weights itself.

        Raises:
            UsageError: The params have another structure.
            BirdieError: The model cannot compute.
        """
        if step % self._every:
            return None
        import lm_eval  # here: a loop that hands its params to a worker may do without it

        self._lm.update(params)
        with _random_states_kept():
            results = lm_eval.simple_evaluate(self._lm, **self._evaluate)
        assert results is not None
        metrics = scalars(metrics_of(step, results["results"]))
        self._log(step, metrics)
        return metrics


@contextlib.contextmanager
def _random_states_kept() -> Iterator[None]:
    """Keep the states of the random generators that lm_eval seeds; a loop may draw its batches from them."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    torch_state = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if torch is not None:
            torch.set_rng_state(torch_state)

"""What the evaluator asks of a framework. `jax_backend` answers it for JAX; another framework is another such file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.buckets import StepBudget
from birdie_zmq.engine.planning import Tokens


@dataclass(frozen=True)
class Places:
    """Where in a step's logits to look: logits[rows[i], positions[i]], both int32[q]."""

    rows: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class PlaceScores:
    """What stands at the places.

    ``logprobs`` float32[q] are the targets' log-probabilities in nats, ``greedy`` bool[q] says whether each target is
    the most likely token, ``finite`` bool[q] whether both its logit and the normaliser are finite.
    """

    logprobs: npt.NDArray[np.float32]
    greedy: npt.NDArray[np.bool_]
    finite: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class NextTokens:
    """The most likely token at each place, int32[q], and whether the logits there are finite enough to say, bool[q]."""

    tokens: npt.NDArray[np.int32]
    finite: npt.NDArray[np.bool_]


class Backend(Protocol):
    """A loaded model in some framework.

    Every method raises ModelCallError when the model's own function raises, and ModelOutputError when what it returns
    are not logits.
    """

    name: str
    vocab_size: int
    budget: StepBudget
    num_parameters: int | None
    dtype: str | None
    devices: list[str]
    versions: dict[str, str]
    trial_shapes: frozenset[tuple[int, int]]
    """The ``(rows, length)`` that the model was called with while it was loaded, if it had to be called."""

    def score(self, tokens: Tokens, places: Places, targets: Tokens) -> PlaceScores:
        """Log-probabilities of targets int32[q] at places of a step int32[rows, length]."""
        ...

    def next_tokens(self, tokens: Tokens, places: Places) -> NextTokens:
        """Greedy choices at places of a step int32[rows, length]."""
        ...

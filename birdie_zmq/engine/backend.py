"""What the engine asks of a framework. `jax_backend` answers it for JAX; another framework is another such file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.planning.prefill_planner import PrefillChunk
from birdie_zmq.engine.planning.shape_buckets import StepBudget
from birdie_zmq.engine.planning.steps import Step, Tokens
from birdie_zmq.types import SamplingParams

ExecutionMode = Literal["rows", "forks", "branches", "pairs"]
"""How a model reads, and so how its work is planned: whole rows, in steps from a state, trees behind a state, or pairs of
a context and a continuation, which its own function scores."""


@dataclass(frozen=True)
class TokenScores:
    """What stands at the places of a step.

    ``logprobs`` float32[q] are the targets' log-probabilities in nats, ``greedy`` bool[q] says whether each target is
    the most likely token, ``finite`` bool[q] whether both its logit and the normaliser are finite.
    """

    logprobs: npt.NDArray[np.float32]
    greedy: npt.NDArray[np.bool_]
    finite: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class NextTokens:
    """The token that comes next at each place, int32[q], and whether the logits are finite enough to say, bool[q]."""

    tokens: npt.NDArray[np.int32]
    finite: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SamplingMetadata:
    """How tokens are drawn at each place of a step: by a random key, and by how many it has drawn before, int32[q]."""

    sampling: SamplingParams
    keys: Sequence[int]
    drawn: npt.NDArray[np.int32]


class PendingScores(Protocol):
    """The scores of a step that the device may still be computing."""

    def result(self) -> TokenScores:
        """Wait for them."""
        ...


class Decoding(Protocol):
    """Rows that are continued side by side, each until it is taken out."""

    def put(self, row: int, prompt: Tokens, pieces: Sequence[PrefillChunk], key: int = 0, drawn: int = 0) -> list[int]:
        """Read a prompt int32[n] in pieces, and let a row continue it; the lengths of the steps that it took.

        Where tokens are drawn, they are by the key and by how many were `drawn` of this prompt before.
        """
        ...

    def decode(self, active: npt.NDArray[np.bool_]) -> NextTokens:
        """The next tokens [rows, k] of the active rows, k of them at once."""
        ...

    def narrow(self, rows: Sequence[int]) -> None:
        """Go on with some rows alone, which are numbered anew in this order."""
        ...


class Backend(Protocol):
    """A loaded model in some framework.

    Methods that compute raise ModelCallError when the model's own function raises, ModelOutputError when what it
    returns is not of the right form, and OutOfDeviceMemory when the device has no room for a step.
    """

    name: str
    ability: ExecutionMode
    """``pairs`` where the model gives nothing but its own score."""
    scores_pairs: bool
    """Whether the model scores a continuation after its context by a function of its own."""
    makes_logits: bool
    """Whether a step holds logits of all its positions, because the model does not give its head apart."""
    vocab_size: int
    """0 where a model that only scores pairs does not name it."""
    budget: StepBudget
    num_parameters: int | None
    dtype: str | None
    devices: list[str]
    versions: dict[str, str]
    trial_shapes: frozenset[tuple[int, int]]
    """The ``(rows, length)`` that the model was called with while it was loaded, if it had to be called."""

    @property
    def compile_seconds(self) -> float:
        """How long compiling took."""
        ...

    @property
    def tracing_seconds(self) -> float:
        """How long it took beyond that to have programs, before they were compiled."""
        ...

    @property
    def states_evicted(self) -> int:
        """How many states of beginnings had to go because of the bound."""
        ...

    def known(self, room: int) -> Collection[bytes]:
        """The beginnings whose states are there and have this many slots a row, by the bytes of their tokens."""
        ...

    def open(self, steps: Sequence[Step]) -> None:
        """Make ready for a plan, whose steps are submitted next, in order."""
        ...

    def submit(self, step: Step) -> PendingScores:
        """Begin to compute the log-probabilities of a step's targets at its places."""
        ...

    def next_tokens(self, step: Step, drawing: SamplingMetadata | None = None) -> NextTokens:
        """The tokens that come next at the places of a step of whole rows: the most likely ones, or drawn."""
        ...

    def decoding_rows(self, capacity: int, wanted: int) -> int:
        """How many rows of so many tokens there is room for beside one that is being read and one that is kept.

        Raises:
            OutOfDeviceMemory: For none. It says how many tokens there is room for.
        """
        ...

    def decoding(self, rows: int, capacity: int, sampling: SamplingParams | None = None) -> Decoding:
        """Rows with room for `capacity` tokens each, for models with a state."""
        ...

    def update(self, params: Any) -> None:
        """Compute with other weights of the same form from now on; None where they are no argument of the functions.

        Raises:
            UsageError: They have another form.
        """
        ...

    def halve_budget(self) -> bool:
        """Make later steps smaller, and forget all states; False if they are as small as can be."""
        ...

"""The interface between the engine and a framework: a `Backend` is a loaded model that computes steps.

The engine plans *steps*: padded arrays of tokens, with the positions at which a score or the next token is needed. A
backend runs the model on each step and returns one number per position, not the logits. The engine calls it from one
thread at a time.

There are two ways to plug in another framework:

- Subclass `birdie_zmq.engine.numpy.row_backend.RowBackend`, which suits models that compute whole rows without a state.
  A subclass says how its framework calls the model on a padded batch (`forward`) and how it gathers logits at some
  positions (`logits_at`). Everything else has a default in NumPy on the host; override the parts that the framework
  does better on its device. `birdie_zmq.engine.torch.backend` is an example.
- Implement `Backend` directly, as `birdie_zmq.engine.jax.backend` does. This is needed for models with a state (a KV
  cache or a recurrent state): the backend caches the states of prefixes across steps.

In both cases the module of the engine has ``make_backend(model: LoadedModel, max_length: int) -> Backend``. Two further
functions are optional: ``prepare() -> None`` is called before the user module is imported, and
``make_mesh(shape: MeshShape)`` makes a mesh of devices, which ``make_backend`` then receives as ``mesh=``.

A backend names two execution modes (`birdie_zmq.engine.planning.execution_mode`): one for whole texts and generation,
and one for continuations after a context. They choose the steps. Each step says what kind it is
(`birdie_zmq.engine.planning.steps`), and a backend only receives the kinds of its modes.

Shape letters: q positions of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.logits_processing import LogitsProcessing
from birdie_zmq.engine.planning.execution_mode import ExecutionMode
from birdie_zmq.engine.planning.shape_buckets import StepBudget
from birdie_zmq.engine.planning.steps import Step, Tokens
from birdie_zmq.types import SamplingParams


@dataclass(frozen=True)
class TopTokens:
    """The k most likely tokens at each position, most likely first; of equally likely ones, the lower id first.

    Attributes:
        ids: int32[…, k], the tokens.
        logprobs: float32[…, k], their log-probabilities in nats, of the model's own logits.
    """

    ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]


@dataclass(frozen=True)
class TokenScores:
    """The scores at the positions of a step.

    Attributes:
        logprobs: float32[q], the log-probability of each target token, in nats; minus infinity for a masked token, whose
            logit is minus infinity.
        greedy: bool[q], whether each target is the most likely token.
        finite: bool[q], whether the normaliser is finite: no logit is NaN or plus infinity, and not all are minus
            infinity.
        top: The most likely tokens at each position, if they were asked for.
    """

    logprobs: npt.NDArray[np.float32]
    greedy: npt.NDArray[np.bool_]
    finite: npt.NDArray[np.bool_]
    top: TopTokens | None = None


@dataclass(frozen=True)
class NextTokens:
    """The next token at each position of a step.

    Attributes:
        tokens: int32[q], the chosen tokens.
        finite: bool[q], whether the logits are finite enough to choose a token.
        logprobs: float32[q], the log-probabilities of the chosen tokens by the model's own logits, in nats, if they were
            asked for.
        top: The most likely tokens at each position, if they were asked for.
    """

    tokens: npt.NDArray[np.int32]
    finite: npt.NDArray[np.bool_]
    logprobs: npt.NDArray[np.float32] | None = None
    top: TopTokens | None = None


@dataclass(frozen=True)
class TokenChoice:
    """How next tokens are chosen, the same for all rows of a batch.

    Attributes:
        sampling: Temperature, top-k, top-p and min-p; None takes the most likely token.
        processing: How logits are changed first; None leaves them.
        top: The number of most likely tokens that are returned with each chosen one; 0 for no log-probabilities.
    """

    sampling: SamplingParams | None = None
    processing: LogitsProcessing | None = None
    top: int = 0


GREEDY = TokenChoice()
"""The most likely token is chosen."""


@dataclass(frozen=True)
class SamplingMetadata:
    """How to choose a token at each position of a step.

    Attributes:
        choice: How to choose.
        keys: The random key of each position.
        sampled: int32[q], the number of tokens that were generated before each position.
        texts: The prompt int32[n] of each position and its answer so far, if logits are processed; else empty.
    """

    choice: TokenChoice
    keys: Sequence[int]
    sampled: npt.NDArray[np.int32]
    texts: Sequence[Tokens] = ()


class PendingScores(Protocol):
    """The scores of a step that the device may still be computing."""

    def result(self) -> TokenScores:
        """Wait for the scores and return them."""
        ...


PrefillStep = tuple[Step, SamplingMetadata | None]
"""A step of prompts, whose positions are the last ones of texts, and how to choose the tokens after them."""


class Decoding(Protocol):
    """A batch of rows that are decoded together; each row stays until its sequence ends."""

    def prefill(
        self,
        step: Step,
        metadata: SamplingMetadata | None = None,
        following: PrefillStep | None = None,
        kept: int = 0,
    ) -> NextTokens:
        """Compute the next step of the plan, and choose the next token at each of its positions.

        What rows need to continue these texts is kept until the next step.

        Args:
            step: The step; each position is the last of a text.
            metadata: How to choose; None takes the most likely token.
            following: What this is called with next, at any later time. A device that computes two steps at the same
                time may start to compute it.
            kept: The number of positions of steps before that are kept as well; `put` counts on from them. It is above 0
                only for a step that was the following one.
        """
        ...

    def put(self, row: int, position: int, text: Tokens, key: int = 0, sampled: int = 0) -> None:
        """Let a row continue a text of the last prefill step.

        Args:
            row: The row; it is free.
            position: Which of the step's positions is the last of the text, after those that are kept of steps before.
            text: The tokens int32[n + 1]: n that are computed, and the next one, with which decoding begins.
            key: The random key of the row, if tokens are sampled.
            sampled: The number of tokens at the end of the text that were generated, at least 1.
        """
        ...

    def decode(self, active: npt.NDArray[np.bool_]) -> NextTokens:
        """Decode the next k tokens of each active row; the result has the shape [rows, k]."""
        ...

    def narrow(self, rows: Sequence[int]) -> None:
        """Keep only some rows, which are ascending, and renumber them in this order."""
        ...


class Backend(Protocol):
    """A loaded model in some framework.

    Methods that compute raise ModelCallError if the model's own function raises, ModelOutputError if the function
    returns an array of the wrong shape or dtype, and OutOfDeviceMemory if a step does not fit into device memory.
    """

    name: str
    """The name of the engine, for results."""
    text_mode: ExecutionMode | None
    """How whole texts are scored and continued; None if the model provides only its own `score`."""
    pair_mode: ExecutionMode
    """How a continuation is scored after its context: ``PAIRS`` if the model has its own `score`, else `text_mode`."""
    generation_mode: ExecutionMode | None
    """How prompts are prefilled; None if the model provides only its own `score`."""
    shares_prefixes: bool
    """Whether rows that are decoded together can share a prefix that is held once."""
    makes_logits: bool
    """Whether a step computes the logits of all its positions, because the model's head is not a separate function."""
    vocab_size: int
    """The number of tokens; 0 if a model that only scores pairs does not name it."""
    budget: StepBudget
    """The limits of a step on this device."""
    num_parameters: int | None
    """The number of parameters, for results; None if the backend cannot see the weights."""
    dtype: str | None
    """The dtype of most weights, for results; None if the backend cannot see the weights."""
    devices: list[str]
    """The devices that compute, for results."""
    versions: dict[str, str]
    """The versions of the framework's packages, for results."""
    probe_shapes: frozenset[tuple[int, int]]
    """The ``(rows, length)`` of the calls that were made while the model was loaded; empty if none was necessary."""

    @property
    def compile_seconds(self) -> float:
        """Seconds spent on compilation so far."""
        ...

    @property
    def tracing_seconds(self) -> float:
        """Seconds spent on preparing executables other than compilation, such as tracing."""
        ...

    @property
    def states_evicted(self) -> int:
        """Number of states that were evicted from the prefix cache because of its size limit."""
        ...

    def cached_prefixes(self) -> Mapping[bytes, int]:
        """Return the capacity in tokens of each cached state, by the bytes of the tokens of its prefix."""
        ...

    def start_plan(self, steps: Sequence[Step], capacity: int = 0) -> None:
        """Prepare for a plan; its steps are computed next, in order.

        Args:
            steps: The steps.
            capacity: The least capacity in tokens of the states that the plan creates.
        """
        ...

    def submit(self, step: Step, top: int = 0) -> PendingScores:
        """Start to compute the log-probabilities of a step's targets at its positions.

        Args:
            step: The step.
            top: The number of most likely tokens that are returned for each position; its kind is not Pairs if it is
                above 0.
        """
        ...

    def next_tokens(self, step: Step, metadata: SamplingMetadata | None = None) -> NextTokens:
        """Choose the next token at each position of a step of whole rows.

        Args:
            step: The step; its kind is Dense.
            metadata: How to choose; None takes the most likely token.
        """
        ...

    def decoding_rows(self, capacity: int, wanted: int, spare: int = 0) -> int:
        """Return how many rows are decoded together: at most as many as are wanted, fit, and are faster together.

        Memory is left for one further row that is being prefilled and one that is cached, and for the spare rows.

        Args:
            capacity: The capacity of each row in tokens.
            wanted: The maximum number to return.
            spare: The number of further rows that must fit beside them. The result is 0 or less if only these fit.

        Raises:
            OutOfDeviceMemory: Not even one row fits. The message names the number of tokens that would fit.
        """
        ...

    def decoding(self, rows: int, capacity: int, choice: TokenChoice = GREEDY, shared: bytes = b"") -> Decoding:
        """Create a batch of rows to decode, with a capacity in tokens for each; only for models with a state.

        Args:
            rows: The number of rows.
            capacity: The capacity of each row in tokens, without the shared prefix.
            choice: How tokens are chosen.
            shared: The prefix that all rows share and that is held once, as the bytes of its tokens: all steps of the
                plan with positions are trees after it. Only if the backend `shares_prefixes`.
        """
        ...

    def update(self, params: Any) -> None:
        """Replace the weights by others with the same tree, shapes and dtypes.

        Args:
            params: The new weights; None if the model's functions take no params.

        Raises:
            UsageError: The tree, a shape or a dtype differs.
        """
        ...

    def halve_budget(self) -> bool:
        """Halve the size of later steps and clear the prefix cache; return False if steps are as small as possible."""
        ...

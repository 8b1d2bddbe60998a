"""The base class of backends for models that compute whole rows; all but the framework's part is NumPy.

A subclass says how its framework calls a model on a padded batch (`RowBackend.forward`), and how it gathers logits at
some positions (`RowBackend.logits_at`). All other methods have a default: scores and tokens are computed by NumPy on
the host. A subclass overrides the methods that its framework does better.

Shape letters: b rows, t tokens of a row, q positions, v vocabulary, d the width of a hidden state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine import model_errors
from birdie_zmq.engine.backend import (
    GREEDY,
    Decoding,
    NextTokens,
    PendingScores,
    SamplingMetadata,
    TokenChoice,
    TokenScores,
    TopTokens,
)
from birdie_zmq.engine.logits_processing import process_logits, processing_arrays, step_state
from birdie_zmq.engine.logprobs import logprobs_of, top_tokens
from birdie_zmq.engine.model_api import LoadedModel
from birdie_zmq.engine.numpy.sampling import greedy, logsumexp, sample
from birdie_zmq.engine.output_checks import (
    check_hidden,
    is_log_probability,
    logits_vocab_size,
    resolve_vocab_size,
    score_output_error,
)
from birdie_zmq.engine.planning.execution_mode import PAIRS, ROWS
from birdie_zmq.engine.planning.shape_buckets import MIN_LENGTH, StepBudget
from birdie_zmq.engine.planning.steps import Pairs, Step, Tokens
from birdie_zmq.errors import InternalError, ModelLoadError

BUDGET = StepBudget(tokens=1024)
"""The limits of a step on a CPU."""

_MAX_LOGITS_BYTES = 2**27
"""The maximum size of the float32 logits of one chunk; a step with more positions computes them in several chunks."""

_MIN_POSITIONS = 32
"""The minimum number of positions of a chunk."""


class ScoreColumns(NamedTuple):
    """The fields of `birdie_zmq.engine.backend.TokenScores` as arrays of the framework that may still be pending."""

    logprobs: Any
    greedy: Any
    finite: Any
    top: tuple[Any, Any] | None = None


class _PendingScores:
    """The scores of a step, as chunks of its positions."""

    def __init__(self, backend: RowBackend, chunks: list[ScoreColumns], inputs: str, top: int) -> None:
        self._backend = backend
        self._chunks = chunks
        self._inputs = inputs
        self._top = top

    def result(self) -> TokenScores:
        """Wait for the scores and return them."""
        backend, k = self._backend, self._top
        empty = [np.zeros(0, np.float32), np.zeros(0, np.bool_), np.zeros(0, np.bool_)]
        empty += [np.zeros((0, k), np.int32), np.zeros((0, k), np.float32)] if k else []
        with backend.model_call(self._inputs):
            chunks = [
                [backend.to_host(column) for column in (*chunk[:3], *(chunk.top or ()))] for chunk in self._chunks
            ]
        logprobs, greedy, finite, *top = (np.concatenate(column) for column in zip(empty, *chunks, strict=True))
        return TokenScores(logprobs, greedy, finite, TopTokens(*top) if k else None)


class _ReadyScores:
    """Scores that have been computed already."""

    def __init__(self, scores: TokenScores) -> None:
        self._scores = scores

    def result(self) -> TokenScores:
        """Return the scores."""
        return self._scores


class RowBackend(ABC):
    """A `birdie_zmq.engine.backend.Backend` for models that compute whole rows, without the framework's part.

    It calls the model's `logits`, or its `hidden` and `unembed`, and its `score` as they are, without tracing or
    compilation. If a subclass has its own constructor, it calls this one once `forward` works, because this
    one calls the model.

    Args:
        loaded: The resolved return value of load_model.
        max_length: The maximum length of a row, in tokens.
        budget: The limits of a step on the device.

    Attributes:
        params: The params of the model, the first argument of its functions.
        takes_params: Whether the functions take the params; a bare callable takes only tokens.
        function: The model's `hidden`, or else its `logits`; None if it has neither.
        unembed: The model's `unembed`, if `function` is its `hidden`.
        score_function: The model's own `score`, if it has one.

    Raises:
        ModelLoadError: The model provides none of these functions.
        ModelCallError: A function raised on a small probe row.
        ModelOutputError: A function returned an array of the wrong shape or dtype.
    """

    name: str
    num_parameters: int | None = None
    dtype: str | None = None
    compile_seconds = 0.0
    tracing_seconds = 0.0
    states_evicted = 0

    def __init__(self, loaded: LoadedModel, max_length: int, budget: StepBudget = BUDGET) -> None:
        model = loaded.model
        self.params = model.params
        self.takes_params = loaded.jit
        self.unembed = model.unembed if model.hidden else None
        self.makes_logits = self.unembed is None
        self.function: Callable[..., Any] | None = model.hidden or model.logits
        self.score_function: Callable[..., Any] | None = model.score
        if self.function is None and self.score_function is None:
            raise ModelLoadError(
                f"the engine {self.name} computes whole rows, but the Model that load_model returned has no function for "
                "them: provide logits, or hidden and unembed, or score"
            )
        self.text_mode = ROWS if self.function is not None else None
        self.pair_mode = PAIRS if self.score_function is not None else ROWS
        self.generation_mode = self.text_mode
        self.shares_prefixes = False
        self.budget = budget
        self.devices = self.find_devices()
        self.versions = self.find_versions()
        shape = (1, min(MIN_LENGTH, max_length))
        self.probe_shapes = frozenset({shape})
        if self.score_function is not None:
            with self.model_call(f"input_ids int32{list(shape)}"):
                self._score_pairs(*(np.zeros(shape, np.int32) for _ in range(3)))
        self.vocab_size = model.vocab_size or 0
        if self.function is not None:
            # Until the size is known, a value that keeps all columns of the logits.
            self.vocab_size = model.vocab_size or np.iinfo(np.int32).max
            with self.model_call(_describe_tokens(shape)):
                logits = self._forward(np.zeros(shape, np.int32))
                if not self.makes_logits:
                    first = np.zeros(1, np.int32)
                    logits, shape = self.logits_at(logits, first, first)[None], (1, 1)
                found = logits_vocab_size(logits, shape, self.is_floating)
            self.vocab_size = resolve_vocab_size(model.vocab_size, found)

    # --- The part of the framework ------------------------------------------------------------------------------------

    @abstractmethod
    def forward(self, tokens: Tokens) -> Any:
        """Return the result of `call` for tokens int32[b, t]: logits [b, t, v], or hidden states [b, t, d]."""

    @abstractmethod
    def logits_at(self, output: Any, rows: Tokens, positions: Tokens) -> Any:
        """Return the logits float32[q, v] at some positions, cut to ``self.vocab_size``.

        With ``self.unembed`` the logits are its result for ``self.params`` and the hidden states at the positions.

        Args:
            output: The result of `forward`.
            rows: The rows int32[q] of the positions.
            positions: The positions int32[q] within the rows.
        """

    def to_device(self, array: Tokens) -> Any:
        """Convert a NumPy array to an array of the framework, on the model's device."""
        return array

    def find_devices(self) -> list[str]:
        """Return the names of the devices on which the model computes, for results."""
        return ["cpu"]

    def find_versions(self) -> dict[str, str]:
        """Return the versions of the framework's packages, for results."""
        return {}

    def is_floating(self, array: Any) -> bool:
        """Return whether an array of the framework holds floating-point numbers."""
        return bool(np.issubdtype(array.dtype, np.floating))

    def to_host(self, array: Any) -> npt.NDArray[Any]:
        """Convert an array of the framework to a NumPy array."""
        return np.asarray(array)

    def is_out_of_memory(self, error: Exception) -> bool:
        """Return whether an error of the framework means that the device is out of memory."""
        return isinstance(error, MemoryError)

    def free_memory(self) -> None:  # noqa: B027 - most frameworks cache nothing
        """Release memory that the framework caches; called after a step did not fit into device memory."""

    def score(self, logits: Any, targets: Tokens) -> ScoreColumns:
        """Score targets int32[q] by logits float32[q, v]."""
        values = self.to_host(logits)
        normaliser = logsumexp(values)
        chosen = values[np.arange(len(targets)), targets]
        with np.errstate(invalid="ignore"):
            logprobs = chosen - normaliser
        return ScoreColumns(logprobs, values.argmax(axis=-1) == targets, np.isfinite(normaliser))

    def top(self, logits: Any, count: int) -> tuple[Any, Any]:
        """Return the most likely tokens int32[q, count] by logits float32[q, v], and their log-probabilities."""
        top = top_tokens(self.to_host(logits), count)
        return top.ids, top.logprobs

    def greedy_tokens(self, logits: Any) -> tuple[Any, Any]:
        """Return the most likely tokens [q] by logits float32[q, v], and whether the logits are finite, bool[q]."""
        values = self.to_host(logits)
        return values.argmax(axis=-1), np.isfinite(logsumexp(values))

    def _score_at(self, output: Any, step: Step, at: slice, top: int) -> ScoreColumns:
        """Score some of the targets of a step, and return the ``top`` most likely tokens if it is above 0."""
        logits = self.logits_at(output, step.rows[at], step.positions[at])
        scores = self.score(logits, step.targets[at])
        return scores._replace(top=self.top(logits, top)) if top else scores

    # --- The interface Backend ----------------------------------------------------------------------------------------

    def submit(self, step: Step, top: int = 0) -> PendingScores:
        """Start to compute the log-probabilities of a step's targets at its positions."""
        top = min(top, self.vocab_size)
        inputs = _describe_tokens(step.shape)
        step = self.arrange(step)
        with self.model_call(inputs):
            if isinstance(step.kind, Pairs):
                logprobs, greedy = self._score_pairs(step.tokens, step.kind.label_ids, step.kind.loss_mask)
                chosen = logprobs[step.rows]
                return _ReadyScores(TokenScores(chosen, greedy[step.rows], is_log_probability(chosen)))
            output = self.compute(step)
            chunks = [self._score_at(output, step, at, top) for at in _chunks(len(step.targets), self.vocab_size)]
        return _PendingScores(self, chunks, inputs, top)

    def next_tokens(self, step: Step, metadata: SamplingMetadata | None = None) -> NextTokens:
        """Choose the next token at each position of a step of whole rows: the most likely one, or a sampled one."""
        step = self.arrange(step)
        with self.model_call(_describe_tokens(step.shape)):
            return self.choose(self.compute(step), step.rows, step.positions, metadata)

    def arrange(self, step: Step) -> Step:
        """Return a step as the framework computes it, with the same positions."""
        return step

    def compute(self, step: Step) -> Any:
        """Return the model's output for an arranged step: logits [b, t, v], or hidden states [b, t, d]."""
        return self._forward(step.tokens)

    def choose(self, output: Any, rows: Tokens, positions: Tokens, metadata: SamplingMetadata | None) -> NextTokens:
        """Choose the next tokens at positions int32[q] of rows int32[q] of the model's output."""
        chunks = [NextTokens(np.zeros(0, np.int32), np.zeros(0, np.bool_))]
        for at in _chunks(len(rows), self.vocab_size):
            logits = self.logits_at(output, rows[at], positions[at])
            if metadata is None:
                tokens, finite = map(self.to_host, self.greedy_tokens(logits))
                chunks.append(NextTokens(tokens.astype(np.int32), finite))
                continue
            sampled, texts = metadata.sampled[at], metadata.texts[at]
            here = replace(metadata, keys=metadata.keys[at], sampled=sampled, texts=texts)
            chunks.append(_choose(self.to_host(logits), here))
        return _concatenated(chunks)

    def halve_budget(self) -> bool:
        """Halve the size of later steps; return False if they are as small as possible."""
        self.free_memory()
        if self.budget.tokens <= MIN_LENGTH:
            return False
        self.budget = replace(self.budget, tokens=self.budget.tokens // 2)
        return True

    def update(self, params: Any) -> None:
        """Replace the weights by others with the same tree, shapes and dtypes; None keeps them."""
        if params is not None:
            self.params = params

    def cached_prefixes(self) -> Mapping[bytes, int]:
        """Return no prefixes, because there are no states."""
        return {}

    def start_plan(self, steps: Sequence[Step], capacity: int = 0) -> None:  # noqa: B027 - there are no states
        """Do nothing, because there are no states to prepare."""

    def decoding_rows(self, capacity: int, wanted: int, spare: int = 0) -> int:  # noqa: ARG002
        """Raise an error; this is never called for a model without a state."""
        raise InternalError(
            f"the engine {self.name} has no states, but {wanted} rows of {capacity} tokens were requested"
        )

    def decoding(self, rows: int, capacity: int, choice: TokenChoice = GREEDY, shared: bytes = b"") -> Decoding:  # noqa: ARG002
        """Raise an error; this is never called for a model without a state."""
        raise InternalError(
            f"the engine {self.name} has no states, but {rows} rows of {capacity} tokens were requested"
        )

    def model_call(self, inputs: str) -> AbstractContextManager[None]:
        """Convert errors of a call of the model; see `birdie_zmq.engine.model_errors.model_call`."""
        return model_errors.model_call(inputs, self.is_out_of_memory)

    def call_score(self, input_ids: Any, label_ids: Any, loss_mask: Any) -> Any:
        """Call the model's own `score` on arrays of the framework."""
        assert self.score_function is not None
        return self.score_function(self.params, input_ids, label_ids, loss_mask)

    def call(self, tokens: Any, **keywords: Any) -> Any:
        """Call the model's `hidden` or `logits` on tokens, which are an array of the framework."""
        assert self.function is not None
        arguments = (self.params, tokens) if self.takes_params else (tokens,)
        return self.function(*arguments, **keywords)

    def _forward(self, tokens: Tokens) -> Any:
        """Return the model's output for tokens int32[b, t], after a check of its shape and dtype."""
        output = self.forward(tokens)
        if self.makes_logits:
            logits_vocab_size(output, tokens.shape, self.is_floating)
        else:
            check_hidden(output, tokens.shape)
        return output

    def _score_pairs(self, *arrays: Tokens) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Return the log-likelihoods float32[b] and greediness bool[b] of rows, by the model's own `score`.

        Args:
            *arrays: Its three inputs, int32[b, t] each.
        """
        assert self.score_function is not None
        returned = self.call_score(*map(self.to_device, arrays))
        columns = returned if isinstance(returned, tuple) else (returned,)
        rows = arrays[0].shape[:1]
        if [tuple(getattr(column, "shape", ())) for column in columns] == [rows, rows]:
            found = [self.to_host(column) for column in columns]
            if self.is_floating(columns[0]) and found[1].dtype == np.bool_:
                return found[0].astype(np.float32), found[1]
        raise score_output_error(columns, arrays[0].shape)


def _choose(logits: npt.NDArray[Any], metadata: SamplingMetadata) -> NextTokens:
    """Choose tokens by logits float[q, v], after the processing of the logits."""
    processing, vocabulary, own = metadata.choice.processing, logits.shape[-1], np.asarray(logits, np.float32)
    if processing is not None:
        state = step_state(processing, metadata.texts, metadata.sampled, vocabulary)
        values = np.asarray(logits, np.float32)
        logits = process_logits(np, values, processing_arrays(processing, vocabulary), state)
    chosen = greedy(logits) if metadata.choice.sampling is None else sample(logits, metadata)
    if not metadata.choice.top:
        return chosen
    return replace(chosen, logprobs=logprobs_of(own, chosen.tokens), top=top_tokens(own, metadata.choice.top))


def _concatenated(chunks: Sequence[NextTokens]) -> NextTokens:
    """Return the next tokens at all positions of a step."""
    tokens, finite = (
        np.concatenate(column) for column in zip(*((each.tokens, each.finite) for each in chunks), strict=True)
    )
    scored = [
        (each.logprobs, each.top.ids, each.top.logprobs) for each in chunks if each.logprobs is not None and each.top
    ]
    if not scored:
        return NextTokens(tokens, finite)
    logprobs, ids, top = (np.concatenate(column) for column in zip(*scored, strict=True))
    return NextTokens(tokens, finite, logprobs, TopTokens(ids, top))


def _chunks(count: int, vocab_size: int) -> Iterator[slice]:
    size = max(_MIN_POSITIONS, _MAX_LOGITS_BYTES // (4 * max(1, vocab_size)))
    for begin in range(0, count, size):
        yield slice(begin, min(begin + size, count))


def _describe_tokens(shape: tuple[int, ...]) -> str:
    return f"tokens int32{list(shape)}"

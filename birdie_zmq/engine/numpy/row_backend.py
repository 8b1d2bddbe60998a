"""What engines for whole rows have in common, in NumPy: an engine is this and a few lines of its framework.

A subclass says how its framework calls a model on a padded batch, and how logits are read at places. Everything else
has an answer here that it may better: scores and tokens by NumPy, on the host.

Shape letters: b rows, t tokens of a row, q places, v vocabulary, d the width of a hidden state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine import model_errors
from birdie_zmq.engine.backend import Decoding, ExecutionMode, NextTokens, PendingScores, SamplingMetadata, TokenScores
from birdie_zmq.engine.model_api import LoadedModel
from birdie_zmq.engine.numpy.sampling import draw
from birdie_zmq.engine.output_checks import check_hidden, chosen_vocabulary, vocabulary_of, wrong_score
from birdie_zmq.engine.planning.shape_buckets import SHORTEST, StepBudget
from birdie_zmq.engine.planning.steps import Pairs, Step, Tokens
from birdie_zmq.errors import InternalError, ModelLoadError
from birdie_zmq.types import SamplingParams

BUDGET = StepBudget(tokens=1024)
"""What bounds a step on a CPU."""

_PLACES_BYTES = 2**27
"""The memory that the float32 logits of the places that are read at once may take."""

_FEWEST_PLACES = 32


class Columns(NamedTuple):
    """What stands at places, as arrays of the framework that may still be computed; as in `TokenScores`."""

    logprobs: Any
    greedy: Any
    finite: Any


class _Pending:
    """The scores of a step, part by part."""

    def __init__(self, backend: RowsBackend, parts: list[Columns], what: str) -> None:
        self._backend = backend
        self._parts = parts
        self._what = what

    def result(self) -> TokenScores:
        """Wait for them."""
        nothing = Columns(np.zeros(0, np.float32), np.zeros(0, np.bool_), np.zeros(0, np.bool_))
        with self._backend.named(self._what):
            parts = [Columns(*map(self._backend.to_host, part)) for part in self._parts]
        return TokenScores(*(np.concatenate(column) for column in zip(nothing, *parts, strict=True)))


class _Known:
    """Scores that need not be waited for."""

    def __init__(self, scores: TokenScores) -> None:
        self._scores = scores

    def result(self) -> TokenScores:
        """Give them."""
        return self._scores


class RowsBackend(ABC):
    """A model that reads whole rows: an `engine.backend.Backend` but for what its framework alone can say.

    Of what load_model returned it takes ``logits``, or ``hidden`` with ``unembed``, and ``score``, and calls them as they
    are. A subclass
    that has a constructor of its own calls this one when it can compute.

    Args:
        model: What load_model returned, resolved.
        max_length: The longest row there will be.
        budget: What bounds a step on the device.

    Raises:
        ModelLoadError: The model gives neither of these.
        ModelCallError: A function raised on a small trial row.
        ModelOutputError: It returned what has not the right form.
    """

    name: str
    num_parameters: int | None = None
    dtype: str | None = None
    compile_seconds = 0.0
    tracing_seconds = 0.0
    states_evicted = 0

    def __init__(self, model: LoadedModel, max_length: int, budget: StepBudget = BUDGET) -> None:
        parts = model.parts
        self.params = parts.params
        self.takes_params = model.jit
        self.unembed = parts.unembed if parts.hidden else None
        self.makes_logits = self.unembed is None
        self.function: Callable[..., Any] | None = parts.hidden or parts.logits
        self.own_score: Callable[..., Any] | None = parts.score
        if self.function is None and self.own_score is None:
            raise ModelLoadError(
                f"the engine {self.name} reads whole rows, and the Model that load_model returned has no function for "
                "them: give it logits, or hidden and unembed, or score"
            )
        self.ability: ExecutionMode = "rows" if self.function is not None else "pairs"
        self.scores_pairs = self.own_score is not None
        self.budget = budget
        self.devices = self.find_devices()
        self.versions = self.find_versions()
        shape = (1, min(SHORTEST, max_length))
        self.trial_shapes = frozenset({shape})
        if self.own_score is not None:
            with self.named(f"input_ids int32{list(shape)}"):
                self._score_pairs(*(np.zeros(shape, np.int32) for _ in range(3)))
        self.vocab_size = parts.vocab_size or 0
        if self.function is not None:
            # Any size that leaves all columns in, until it is known.
            self.vocab_size = parts.vocab_size or np.iinfo(np.int32).max
            self.vocab_size = chosen_vocabulary(parts.vocab_size, self._trial(shape))

    # --- What a framework says ---------------------------------------------------------------------------------------

    @abstractmethod
    def read(self, tokens: Tokens) -> Any:
        """What `call` returns for tokens int32[b, t]: logits [b, t, v], or hidden states [b, t, d]."""

    @abstractmethod
    def logits_at(self, read: Any, rows: Tokens, positions: Tokens) -> Any:
        """Logits float32[q, v] at places int32[q] of what was read, cut to ``self.vocab_size``.

        With ``self.unembed`` they are what it makes of ``self.params`` and the hidden states there.
        """

    def place(self, array: Tokens) -> Any:
        """An array of NumPy as one of the framework, where the model computes."""
        return array

    def find_devices(self) -> list[str]:
        """Where the model computes, for results."""
        return ["cpu"]

    def find_versions(self) -> dict[str, str]:
        """The versions of the framework's packages, for results."""
        return {}

    def is_floating(self, array: Any) -> bool:
        """Whether an array of the framework holds floating-point numbers."""
        return bool(np.issubdtype(array.dtype, np.floating))

    def to_host(self, array: Any) -> npt.NDArray[Any]:
        """An array of the framework as one of NumPy."""
        return np.asarray(array)

    def has_no_room(self, error: Exception) -> bool:
        """Whether an error of the framework says that the device has no room."""
        return isinstance(error, MemoryError)

    def free_memory(self) -> None:  # noqa: B027 - most keep nothing
        """Give back what the framework keeps for later; called when there was no room."""

    def score(self, logits: Any, targets: Tokens) -> Columns:
        """Log-probability, greediness and finiteness of targets int32[q] by logits float32[q, v]."""
        at = self.to_host(logits)
        normaliser = _logsumexp(at)
        chosen = at[np.arange(len(targets)), targets]
        with np.errstate(invalid="ignore"):
            logprobs = chosen - normaliser
        return Columns(logprobs, at.argmax(axis=-1) == targets, np.isfinite(chosen) & np.isfinite(normaliser))

    def choose(self, logits: Any) -> tuple[Any, Any]:
        """The greedy tokens [q] by logits float32[q, v], and whether they can be told, bool[q]."""
        at = self.to_host(logits)
        return at.argmax(axis=-1), np.isfinite(_logsumexp(at))

    def draw(self, logits: Any, drawing: SamplingMetadata) -> NextTokens:
        """Tokens that are drawn by logits float32[q, v]."""
        return draw(self.to_host(logits), drawing)

    # --- The Backend -------------------------------------------------------------------------------------------------

    def submit(self, step: Step) -> PendingScores:
        """Begin to compute the log-probabilities of a step's targets at its places."""
        what = _called(step.shape)
        with self.named(what):
            if isinstance(step.how, Pairs):
                logprobs, greedy = self._score_pairs(step.tokens, step.how.label_ids, step.how.loss_mask)
                chosen = logprobs[step.rows]
                return _Known(TokenScores(chosen, greedy[step.rows], np.isfinite(chosen)))
            read = self._read(step.tokens)
            parts = [
                self.score(self.logits_at(read, step.rows[at], step.positions[at]), step.targets[at])
                for at in self._chunks(len(step.targets))
            ]
        return _Pending(self, parts, what)

    def next_tokens(self, step: Step, drawing: SamplingMetadata | None = None) -> NextTokens:
        """The tokens that come next at the places of a step of whole rows: the most likely ones, or drawn."""
        parts = []
        with self.named(_called(step.shape)):
            read = self._read(step.tokens)
            for at in self._chunks(len(step.rows)):
                logits = self.logits_at(read, step.rows[at], step.positions[at])
                if drawing is None:
                    tokens, finite = map(self.to_host, self.choose(logits))
                    parts.append(NextTokens(tokens.astype(np.int32), finite))
                else:
                    parts.append(self.draw(logits, replace(drawing, keys=drawing.keys[at], drawn=drawing.drawn[at])))
        return NextTokens(
            np.concatenate([part.tokens for part in parts]), np.concatenate([part.finite for part in parts])
        )

    def halve_budget(self) -> bool:
        """Make later steps smaller; False if they are as small as can be."""
        self.free_memory()
        if self.budget.tokens <= SHORTEST:
            return False
        self.budget = replace(self.budget, tokens=self.budget.tokens // 2)
        return True

    def update(self, params: Any) -> None:
        """Compute with other weights of the same form from now on; None where they are no argument of the functions."""
        if params is not None:
            self.params = params

    def known(self, room: int) -> Collection[bytes]:  # noqa: ARG002 - there are none of any size
        """No beginnings: there are no states."""
        return ()

    def open(self, steps: Sequence[Step]) -> None:  # noqa: B027 - there are no states to make ready
        """Nothing is made ready for a plan."""

    def decoding_rows(self, capacity: int, wanted: int) -> int:
        """Never asked of a model without a state."""
        raise InternalError(f"{self.name} has no states, but was asked for {wanted} of {capacity} tokens")

    def decoding(self, rows: int, capacity: int, sampling: SamplingParams | None = None) -> Decoding:  # noqa: ARG002
        """Never asked of a model without a state."""
        raise InternalError(f"{self.name} has no states, but was asked for {rows} of {capacity} tokens")

    def named(self, what: str) -> AbstractContextManager[None]:
        """Say of an error of the model's own function what it was called with, as `birdie_zmq.engine.model_errors.named`."""
        return model_errors.named(what, self.has_no_room)

    def call_score(self, input_ids: Any, label_ids: Any, loss_mask: Any) -> Any:
        """The model's own score of rows, as its framework wants them."""
        assert self.own_score is not None
        return self.own_score(self.params, input_ids, label_ids, loss_mask)

    def call(self, tokens: Any, **keywords: Any) -> Any:
        """The model's function on tokens as its framework wants them."""
        assert self.function is not None
        given = (self.params, tokens) if self.takes_params else (tokens,)
        return self.function(*given, **keywords)

    def _read(self, tokens: Tokens) -> Any:
        """What the model returns for tokens int32[b, t], once its form is seen to be right."""
        read = self.read(tokens)
        if self.makes_logits:
            vocabulary_of(read, tokens.shape, self.is_floating)
        else:
            check_hidden(read, tokens.shape)
        return read

    def _score_pairs(self, *arrays: Tokens) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """What the model's own score says of rows [b], from int32[b, t] each of its three arrays."""
        assert self.own_score is not None
        returned = self.call_score(*map(self.place, arrays))
        columns = returned if isinstance(returned, tuple) else (returned,)
        rows = arrays[0].shape[:1]
        if [tuple(getattr(column, "shape", ())) for column in columns] == [rows, rows]:
            found = [self.to_host(column) for column in columns]
            if self.is_floating(columns[0]) and found[1].dtype == np.bool_:
                return found[0].astype(np.float32), found[1]
        raise wrong_score(columns, arrays[0].shape)

    def _trial(self, shape: tuple[int, int]) -> int:
        """The size of the vocabulary, from a row that costs little."""
        with self.named(_called(shape)):
            read = self._read(np.zeros(shape, np.int32))
            if self.makes_logits:
                return vocabulary_of(read, shape, self.is_floating)
            at = self.logits_at(read, np.zeros(1, np.int32), np.zeros(1, np.int32))
            return vocabulary_of(at[None], (1, 1), self.is_floating)

    def _chunks(self, count: int) -> Iterator[slice]:
        most = max(_FEWEST_PLACES, _PLACES_BYTES // (4 * max(1, self.vocab_size)))
        for begin in range(0, count, most):
            yield slice(begin, min(begin + most, count))


def _called(shape: tuple[int, ...]) -> str:
    return f"tokens int32{list(shape)}"


def _logsumexp(at: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The normalisers [q] of logits float32[q, v]; NaN or infinite where they are."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        peak = at.max(axis=-1)
        result: npt.NDArray[np.float32] = peak + np.log(np.exp(at - peak[:, None]).sum(axis=-1))
    return result

"""The model API: what ``load_model`` may return, and how the engine resolves it.

``load_model`` returns one of three things:

- a callable from tokens to logits;
- a pair ``(apply, params)`` with ``apply(params, tokens)``;
- a `Model`, which names the functions of a model separately.

Each further function of a `Model` lets the engine compute less, with the same results. docs/how_to/your_model.md shows
examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from birdie_zmq.errors import ModelLoadError

Function = Callable[..., Any]


class CheckpointFingerprint(str):
    """A fingerprint of the files that a model was loaded from.

    It holds for a model that is evaluated as it was loaded. In a process of the user's, such as a training loop, the
    weights may have changed since, so an in-process client does not trust it.
    """

    __slots__ = ()


@dataclass(frozen=True)
class Model:
    """A language model, given as its functions and its params.

    The engine jits all functions, and calls each with `params` as the first argument. In the shapes b is the number of
    rows, t the number of tokens of a row, d the width of a hidden state, v the size of the vocabulary, and q any number
    of positions. Rows are padded on the right with token 0.

    A model needs one of these ways to compute:

    - `logits`;
    - `hidden` and `unembed`;
    - `init_state`, `extend` and `unembed`, and for models with attention also `branch`, `prefill`, `append` and
      `extend_after`;
    - `score`, which is enough for log-likelihoods only.

    The engine uses the way that computes least: `branch`, else `extend`, else `hidden`, else `logits`. If there is
    `score`, the log-likelihood of a continuation after its context is computed by `score` alone.

    Attributes:
        logits: ``logits(params, tokens int32[b, t]) -> float[b, t, v]``. The logits at position i predict the token at
            i + 1. A causal model needs no mask for the padding.
        params: The first argument of every function: any pytree of arrays.
        max_length: The maximum length of a row in tokens, if the model has a limit.
        vocab_size: The number of tokens v. If it is smaller than the last axis of the logits, the logits beyond
            it are padding of the vocabulary and are ignored. None takes the size of the logits.
        hidden: ``hidden(params, tokens int32[b, t]) -> float[b, t, d]``, the hidden states that `unembed` takes. With
            `hidden` and `unembed` the engine computes the head only at positions that are scored, and never holds the
            logits of the other positions in memory.
        unembed: ``unembed(params, hidden float[q, d]) -> float[q, v]``, the language-model head.
        unembed_part: ``unembed_part(params, hidden float[q, d], begin int32[], size) -> float[q, size]``, the head for
            the tokens from `begin` to ``begin + size - 1``. `size` is static. With it the engine scores in blocks of
            the vocabulary, and never holds the logits of the whole vocabulary in memory.
        init_state: ``init_state(params, batch, capacity) -> state``, the state of `batch` empty rows, each with
            capacity for `capacity` tokens, padding included. The state is any pytree of arrays whose first axis is the
            batch: a KV cache, or the state of a recurrent model. Both numbers are static.
        extend: ``extend(params, tokens int32[b, t], lengths int32[b], state) -> (hidden float[b, t, d], state)``, the
            hidden states of the next tokens of each row, and the state after them. In row i only the first
            ``lengths[i]`` tokens are real, possibly none; the others are padding, which must not change the state. With
            a state the engine computes shared prefixes once, computes long texts in chunks, and decodes one position
            per generated token.
        extend_after: ``extend_after(params, tokens int32[b, t], lengths int32[b], state, prefix) -> (hidden float[b, t,
            d], state)``, as `extend`, for rows that all come after one prefix: `prefix` is its state, with a batch of
            one, and `state` holds only the tokens after it. With it the engine holds a prefix that prompts share once
            while it decodes, and reads it once for all rows.
        resize: ``resize(params, state, capacity) -> state``, the same rows with the same tokens in a state with capacity
            for `capacity` tokens in each row, more than before or fewer; their tokens fit. `capacity` is static. With it
            the engine decodes on a CPU with a small state, which it enlarges when answers get long.
        branch: ``branch(params, tokens int32[b, t], depths int32[b, t], ends int32[b, t], state) -> float[b, t, d]``,
            the hidden states of trees of sequences that continue one state; only for models with attention. Each row
            holds its trees in depth-first order. In row r, token i attends to the whole state, and to token j if
            ``j <= i < ends[r, j]``; its position is ``depths[r, i]`` tokens after the end of the state. The state has a
            batch of one, which all rows share, or is None; `branch` does not change it. Padding attends to itself. The
            engine then computes a whole tree of continuations in one step, without copies of the state.
        prefill: ``prefill(params, tokens int32[b, t], depths int32[b, t], ends int32[b, t], state) -> (hidden
            float[b, t, d], entries)``, as `branch`, and what a state holds of each token: any pytree, such as the keys
            and values of all layers. With `prefill` and `append` the engine prefills many prompts in one step.
        append: ``append(params, state, entries, path int32[n], length int32[]) -> state``, the state of one row after
            the first ``length`` tokens of a path through the trees of a `prefill`, which come after the tokens that the
            state holds. Token j of row i of the step has the number ``i * t + j`` in ``path``. The state has capacity
            for n tokens more; those after ``length`` are padding.
        score: ``score(params, input_ids int32[b, t], label_ids int32[b, t], loss_mask int32[b, t]) -> (loglikelihood
            float[b], is_greedy bool[b])``, for models other than causal decoders. It returns the log-likelihood of the
            continuation of each row in nats, and whether greedy decoding would generate it. A row is a context and its
            continuation without the last token. ``label_ids[i, j]`` is the token after ``input_ids[i, j]``, and
            ``loss_mask[i, j]`` is 1 if that token belongs to the continuation, else 0. The context is therefore
            ``input_ids`` up to and including the position of the first 1 of ``loss_mask``, and everything after the
            last 1 is padding. A row of zeros is padding too: its result is ignored. Rolling log-likelihood and
            generation need one of the other ways to compute.
        fingerprint: A text that distinguishes these weights from others with the same tag, such as a hash or the step
            of a training run. It becomes part of the model's identity, by which journals and caches keep answers apart.
    """

    logits: Function | None = None
    params: Any = None
    max_length: int | None = None
    vocab_size: int | None = None
    hidden: Function | None = None
    unembed: Function | None = None
    unembed_part: Function | None = None
    init_state: Function | None = None
    extend: Function | None = None
    extend_after: Function | None = None
    resize: Function | None = None
    branch: Function | None = None
    prefill: Function | None = None
    append: Function | None = None
    score: Function | None = None
    fingerprint: str | None = None

    def functions(self) -> dict[str, Function]:
        """Return the functions that the model provides, by name."""
        return {name: function for name in _FUNCTIONS if (function := getattr(self, name))}


@dataclass(frozen=True)
class LoadedModel:
    """A model in the form that engines take.

    Attributes:
        model: The functions and params.
        jit: Whether the engine may trace the functions together with the params. A bare callable is not traced: the
            weights in its closure would become constants of the executable, and it may not be traceable at all.
    """

    model: Model
    jit: bool = True

    @property
    def max_length(self) -> int | None:
        """The maximum length of a row in tokens, if the model has a limit."""
        return self.model.max_length

    @property
    def has_state(self) -> bool:
        """Whether the model has a state that tokens can be appended to."""
        return self.model.extend is not None

    @property
    def provides(self) -> list[str]:
        """The names in `Model` of the functions that the model provides; ``callable`` for a bare callable."""
        return list(self.model.functions()) if self.jit else ["callable"]


_FUNCTIONS = (
    *("logits", "hidden", "unembed", "unembed_part"),
    *("init_state", "extend", "extend_after", "resize", "branch", "prefill", "append", "score"),
)
_NEEDS = {
    "hidden": ("unembed",),
    "unembed_part": ("unembed",),
    "extend": ("init_state", "unembed"),
    "init_state": ("extend", "unembed"),
    "branch": ("extend", "init_state", "unembed"),
    "prefill": ("append", "branch"),
    "append": ("prefill",),
    "extend_after": ("prefill",),
    "resize": ("extend", "init_state"),
}


def resolve(returned: object) -> LoadedModel:
    """Convert the return value of ``load_model`` into a `LoadedModel`.

    Raises:
        ModelLoadError: The value is not a callable, a pair or a Model; or the Model lacks a function that another one
            needs.
    """
    if isinstance(returned, Model):
        return LoadedModel(_check_functions(returned))
    if isinstance(returned, tuple) and len(returned) == 2 and callable(returned[0]):
        return LoadedModel(Model(logits=returned[0], params=returned[1]))
    if callable(returned):
        return LoadedModel(Model(logits=returned), jit=False)
    raise ModelLoadError(
        f"load_model returned {_describe(returned)}; it must return a callable from tokens to logits, a pair "
        "(apply, params) with apply(params, tokens), or a birdie_zmq.Model"
    )


def _check_functions(model: Model) -> Model:
    provided = set(model.functions())
    for name in sorted(provided):
        missing = [needed for needed in _NEEDS.get(name, ()) if needed not in provided]
        if missing:
            raise ModelLoadError(
                f"the Model that load_model returned has {name}, which needs {' and '.join(missing)} too"
            )
    if not provided & {"logits", "hidden", "extend", "score"}:
        raise ModelLoadError(
            "the Model that load_model returned cannot compute anything: provide logits; or hidden and unembed; or "
            "init_state, extend and unembed; or score"
        )
    return model


def _describe(value: object) -> str:
    if isinstance(value, tuple):
        return f"a tuple of ({', '.join(type(item).__name__ for item in value)})"
    return "None" if value is None else f"a {type(value).__name__}"

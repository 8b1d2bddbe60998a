"""What ``load_model`` may return, and how it is told apart.

A callable gives logits. A pair is ``(apply, params)``. Everything that needs more words is a `Model`. Each further
function that a model gives lets the engine compute less; docs/how_to/your_model.md shows them at work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from birdie_zmq.errors import ModelLoadError

Function = Callable[..., Any]


@dataclass(frozen=True)
class Model:
    """A language model given by named parts.

    All functions take `params` first and are jitted by the engine. Letters: b rows, t tokens of a row, d the width of a
    hidden state, v vocabulary, q any number of positions. Rows are padded on the right with token 0.

    One way to compute is needed: `logits`; or `hidden` with `unembed`; or `init_state`, `extend` and `unembed`; or
    `score`. The engine takes the one that computes least: `branch`, else `extend`, else `hidden`, else `logits`. Where there
    is `score`, a continuation after its context is scored by it alone.

    Attributes:
        logits: ``logits(params, tokens int32[b, t]) -> float[b, t, v]``, the scores at position i being for the token
            after i. A causal model needs no mask for the padding.
        params: The first argument of every function, any pytree of arrays.
        max_length: The most tokens of a row, if the model has such a bound.
        vocab_size: The size of v, if it is known without a call; the rest of a padded vocabulary is left out.
        hidden: ``hidden(params, tokens int32[b, t]) -> float[b, t, d]``, what the head reads. With `unembed` it saves
            the head at all positions that are not scored, and their logits.
        unembed: ``unembed(params, hidden float[q, d]) -> float[q, v]``, the head.
        unembed_part: ``unembed_part(params, hidden float[q, d], begin int32[], size) -> float[q, size]``, the head for
            the tokens from `begin` to ``begin + size - 1`` alone; `size` is static. Logits of the whole vocabulary then
            never exist while texts are scored.
        init_state: ``init_state(params, batch, capacity) -> state``, of rows that have read nothing and will read
            `capacity` tokens at most, padding counted. Any pytree of arrays whose first axis is the batch: keys and values, or the
            state of a recurrent model. Both numbers are static.
        extend: ``extend(params, tokens int32[b, t], lengths int32[b], state) -> (hidden float[b, t, d], state)`` lets
            each row read on. Of row i only the first ``lengths[i]`` tokens are real, perhaps none: the others must
            leave no trace in the state. Beginnings that texts share are then read once, and long texts in steps.
        branch: ``branch(params, tokens int32[b, t], depths int32[b, t], ends int32[b, t], state) -> float[b, t, d]``,
            for models of attention: a row holds trees of texts in depth-first order. Its token i sees its token j if
            ``j <= i < ends[i, j]``, and stands ``depths[i, j]`` tokens behind the state. The state has one row, which
            all texts continue, or is None; it is not changed. Padding sees itself. Whole trees are then computed in one step, without
            copies of states.
        score: ``score(params, input_ids int32[b, t], label_ids int32[b, t], loss_mask int32[b, t]) -> (loglikelihood
            float[b], is_greedy bool[b])``, for what is no plain causal decoder: the log-likelihood in nats of each row's
            continuation, and whether it is what the model would say. A row is a context and its continuation without
            its last token; ``label_ids[i, j]`` is the token after ``input_ids[i, j]``, and ``loss_mask[i, j]`` is 1 where
            it belongs to the continuation, else 0. So the context is ``input_ids`` up to the first 1, that position
            included, and what follows the last 1 is padding. A row of zeros has no meaning, and its result is not used.
            Rolling log-likelihood and generation need one of the other ways.
        fingerprint: What tells these weights from others of the same tag, such as a hash or the step of a training run;
            a part of the model's identity, by which journals and caches keep answers apart.
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
    branch: Function | None = None
    score: Function | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A model in the one form that engines take.

    ``jit`` is whether the engine may trace the functions together with the params. A bare callable is not traced:
    weights closed over would become constants of the program, and it may not be traceable at all.
    """

    parts: Model
    jit: bool = True

    @property
    def max_length(self) -> int | None:
        """The most tokens of a row, if the model has such a bound."""
        return self.parts.max_length

    @property
    def has_state(self) -> bool:
        """Whether texts can be read in steps."""
        return self.parts.extend is not None

    @property
    def gives(self) -> list[str]:
        """The functions that the model gives, by their names in `Model`; ``callable`` for a bare one."""
        return [name for name in _FUNCTIONS if getattr(self.parts, name)] if self.jit else ["callable"]


_FUNCTIONS = ("logits", "hidden", "unembed", "unembed_part", "init_state", "extend", "branch", "score")
_NEEDS = {
    "hidden": ("unembed",),
    "unembed_part": ("unembed",),
    "extend": ("init_state", "unembed"),
    "init_state": ("extend", "unembed"),
    "branch": ("extend", "init_state", "unembed"),
}


def resolve(returned: object) -> LoadedModel:
    """Bring what ``load_model`` returned into one form.

    Raises:
        ModelLoadError: It is none of a callable, a pair and a Model, or a Model lacks a part that it needs.
    """
    if isinstance(returned, Model):
        return LoadedModel(_complete(returned))
    if isinstance(returned, tuple) and len(returned) == 2 and callable(returned[0]):
        return LoadedModel(Model(logits=returned[0], params=returned[1]))
    if callable(returned):
        return LoadedModel(Model(logits=returned), jit=False)
    raise ModelLoadError(
        f"load_model returned {_describe(returned)}; it must return a callable from tokens to logits, a pair "
        "(apply, params) with apply(params, tokens), or a birdie_zmq.Model"
    )


def _complete(model: Model) -> Model:
    given = {name for name in _FUNCTIONS if getattr(model, name)}
    for name in sorted(given):
        missing = [needed for needed in _NEEDS.get(name, ()) if needed not in given]
        if missing:
            raise ModelLoadError(
                f"the Model that load_model returned has {name}, which needs {' and '.join(missing)} too"
            )
    if not given & {"logits", "hidden", "extend", "score"}:
        raise ModelLoadError(
            "the Model that load_model returned cannot compute anything: give it logits; or hidden and unembed; or "
            "init_state, extend and unembed; or score"
        )
    return model


def _describe(value: object) -> str:
    if isinstance(value, tuple):
        return f"a tuple of ({', '.join(type(item).__name__ for item in value)})"
    return "None" if value is None else f"a {type(value).__name__}"

"""Models in JAX: the jitted steps.

The logits of a step stay on the device. Only the positions that are scored are gathered, brought to float32 and
normalised there, so that a few numbers a request cross to the host.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.backend import NextTokens, Places, PlaceScores
from birdie_zmq.engine.buckets import SHORTEST, StepBudget
from birdie_zmq.engine.contract import LoadedModel
from birdie_zmq.engine.planning import Tokens
from birdie_zmq.errors import ModelCallError, ModelOutputError

_BUDGETS = {"cpu": StepBudget(tokens=1024)}
_ACCELERATOR_BUDGET = StepBudget(tokens=16_384, logits_bytes=2**31, rows=256)

_FEWEST_PLACES = 32
_MOST_PLACES = 4096
_PLACES_BYTES = 2**27
"""The memory that the gathered float32 logits of one call may take."""


@functools.partial(jax.jit, static_argnames="vocab_size")
def _score(
    logits: jax.Array, rows: jax.Array, positions: jax.Array, targets: jax.Array, *, vocab_size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probability, greediness and finiteness of targets int32[q] at places of logits float[b, t, v]."""
    at = logits[rows, positions, :vocab_size].astype(jnp.float32)
    normaliser = jax.nn.logsumexp(at, axis=-1)
    chosen = jnp.take_along_axis(at, targets[:, None], axis=-1)[:, 0]
    return chosen - normaliser, at.argmax(axis=-1) == targets, jnp.isfinite(chosen) & jnp.isfinite(normaliser)


@functools.partial(jax.jit, static_argnames="vocab_size")
def _choose(
    logits: jax.Array, rows: jax.Array, positions: jax.Array, *, vocab_size: int
) -> tuple[jax.Array, jax.Array]:
    """The greedy token int32[q] at places of logits float[b, t, v], and whether it can be told."""
    at = logits[rows, positions, :vocab_size].astype(jnp.float32)
    return at.argmax(axis=-1).astype(jnp.int32), jnp.isfinite(jax.nn.logsumexp(at, axis=-1))


class JaxBackend:
    """A model's logits function on JAX's default device.

    Args:
        model: What load_model returned, resolved.
        max_length: The longest row there will be.

    Raises:
        ModelCallError: The function raised on a small trial row.
        ModelOutputError: It returned what are not logits.
    """

    name = "jax"

    def __init__(self, model: LoadedModel, max_length: int) -> None:
        # Arrays of NumPy would be copied to the device in every step.
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, model.params)
        self._params = params
        self._function = jax.jit(model.logits) if model.jit else model.logits
        self._is_jitted = model.jit
        trial = (1, min(SHORTEST, max_length))
        found = self._trial(trial)
        self.trial_shapes = frozenset() if model.jit else frozenset({trial})
        if model.vocab_size is not None and model.vocab_size > found:
            raise ModelOutputError(f"the model names vocab_size {model.vocab_size}, but its logits have {found}")
        self.vocab_size = model.vocab_size or found
        platform = jax.default_backend()
        self.budget = _BUDGETS.get(platform, _ACCELERATOR_BUDGET)
        self.devices = [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()]
        self.versions = {"jax": jax.__version__, "jaxlib": version("jaxlib")}
        weights = _weights(params if model.jit else model.logits)
        self.num_parameters = sum(leaf.size for leaf in weights) if weights else None
        bytes_of = Counter[str]()
        for leaf in weights:
            bytes_of[str(leaf.dtype)] += leaf.nbytes
        self.dtype = max(bytes_of, key=bytes_of.__getitem__) if bytes_of else None

    def score(self, tokens: Tokens, places: Places, targets: Tokens) -> PlaceScores:
        """Log-probabilities of targets int32[q] at places of a step int32[rows, length]."""
        logits = self._logits(tokens)
        parts = [
            _score(logits, rows, positions, wanted, vocab_size=self.vocab_size)
            for rows, positions, wanted in self._chunks(places.rows, places.positions, targets)
        ]
        logprobs, greedy, finite = (
            np.concatenate([np.asarray(p) for p in column]) for column in zip(*parts, strict=True)
        )
        count = len(places)
        return PlaceScores(logprobs[:count], greedy[:count], finite[:count])

    def next_tokens(self, tokens: Tokens, places: Places) -> NextTokens:
        """Greedy choices at places of a step int32[rows, length]."""
        logits = self._logits(tokens)
        parts = [
            _choose(logits, rows, positions, vocab_size=self.vocab_size)
            for rows, positions in self._chunks(places.rows, places.positions)
        ]
        chosen, finite = (np.concatenate([np.asarray(p) for p in column]) for column in zip(*parts, strict=True))
        count = len(places)
        return NextTokens(chosen[:count], finite[:count])

    def _chunks(self, *columns: npt.NDArray[np.int32]) -> Iterator[list[npt.NDArray[np.int32]]]:
        """Cut columns of one length into pieces of few sizes, the last padded by its zeros."""
        count = len(columns[0])
        most = min(_MOST_PLACES, max(_FEWEST_PLACES, _PLACES_BYTES // (4 * self.vocab_size)))
        most = 1 << (most.bit_length() - 1)
        for begin in range(0, count, most):
            wanted = min(most, count - begin)
            size = max(_FEWEST_PLACES, 1 << (wanted - 1).bit_length())
            yield [np.pad(column[begin : begin + wanted], (0, size - wanted)) for column in columns]

    def _logits(self, tokens: Tokens) -> jax.Array:
        try:
            returned = self._call(jnp.asarray(tokens))
        except Exception as error:
            raise ModelCallError(
                f"the model's function failed on tokens int32{list(tokens.shape)}: {type(error).__name__}: {error}"
            ) from error
        _vocabulary(returned, tokens.shape)
        return jnp.asarray(returned)

    def _call(self, tokens: jax.Array) -> Any:
        return self._function(self._params, tokens) if self._is_jitted else self._function(tokens)

    def _trial(self, shape: tuple[int, int]) -> int:
        """The size of the vocabulary, from a row that costs little; a jitted function is only traced for it."""
        try:
            if self._is_jitted:
                tokens = jax.ShapeDtypeStruct(shape, jnp.int32)  # type: ignore[no-untyped-call]
                returned = jax.eval_shape(self._function, self._params, tokens)
            else:
                returned = self._call(jnp.zeros(shape, jnp.int32))
        except Exception as error:
            raise ModelCallError(
                f"the model's function failed on tokens int32{list(shape)}: {type(error).__name__}: {error}"
            ) from error
        return _vocabulary(returned, shape)


def _weights(tree: Any) -> list[Any]:
    """The floating-point arrays of a pytree; a function that is no pytree has none."""
    leaves = jax.tree.leaves(tree)
    return [leaf for leaf in leaves if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)]


def _vocabulary(returned: Any, shape: tuple[int, ...]) -> int:
    """The last axis of what must be logits for tokens of this shape.

    Raises:
        ModelOutputError: It is not a floating-point array [*shape, vocabulary].
    """
    found, dtype = getattr(returned, "shape", None), getattr(returned, "dtype", None)
    if found is None or dtype is None:
        described = f"a {type(returned).__name__}"
        if isinstance(returned, tuple | list):
            described += f" of {len(returned)}; if it holds logits and something else, return the logits alone"
        raise ModelOutputError(f"the model must return an array of logits, but returned {described}")
    if len(found) != 3 or tuple(found[:2]) != tuple(shape) or found[2] < 1:
        raise ModelOutputError(
            f"for tokens int32{list(shape)} the model must return logits float[{shape[0]}, {shape[1]}, vocabulary], "
            f"but returned {dtype}{list(found)}"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ModelOutputError(f"the model must return floating-point logits, but returned {dtype}{list(found)}")
    return int(found[2])

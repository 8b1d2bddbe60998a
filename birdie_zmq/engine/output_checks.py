"""Checks of what a model's function returned; they are the same for every framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from birdie_zmq.errors import ModelOutputError, NonFiniteLogits


def describe_output(value: Any) -> str:
    """Describe an array by its dtype and shape, and anything else by its type."""
    found, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return f"a {type(value).__name__}" if found is None or dtype is None else f"{dtype}{list(found)}"


def logits_vocab_size(returned: Any, shape: tuple[int, ...], is_floating: Callable[[Any], bool]) -> int:
    """Check the logits for tokens of a shape, and return the size of their last axis.

    Args:
        returned: What the model returned.
        shape: Rows and length of the tokens.
        is_floating: Returns whether an array of the framework holds floating-point numbers.

    Raises:
        ModelOutputError: The value is not a floating-point array [*shape, vocabulary].
    """
    found, dtype = getattr(returned, "shape", None), getattr(returned, "dtype", None)
    if found is None or dtype is None:
        text = f"a {type(returned).__name__}"
        if isinstance(returned, tuple | list):
            text += f" of {len(returned)}; if it holds logits and something else, return the logits alone"
        raise ModelOutputError(f"the model must return an array of logits, but returned {text}")
    if len(found) != 3 or tuple(found[:2]) != tuple(shape) or found[2] < 1:
        raise ModelOutputError(
            f"for tokens int32{list(shape)} the model must return logits float[{shape[0]}, {shape[1]}, vocabulary], "
            f"but returned {describe_output(returned)}"
        )
    if not is_floating(returned):
        raise ModelOutputError(f"the model must return floating-point logits, but returned {describe_output(returned)}")
    return int(found[2])


def score_output_error(columns: Sequence[Any], shape: tuple[int, ...]) -> ModelOutputError:
    """Return the error for a `score` function that did not return the scores of rows int32[b, t].

    Args:
        columns: What the function returned.
        shape: Rows and length of the inputs.
    """
    rows = shape[0]
    return ModelOutputError(
        f"for int32{list(shape)} score must return (loglikelihood float[{rows}], is_greedy bool[{rows}]), but returned "
        f"{', '.join(map(describe_output, columns))}"
    )


def is_log_probability(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return whether values [n] of a model's own `score` may be log-likelihoods: not NaN, and not plus infinity.

    Minus infinity is the log-likelihood of a continuation with a masked token.
    """
    result: npt.NDArray[np.bool_] = values < np.inf
    return result


def check_hidden(returned: Any, shape: tuple[int, ...]) -> None:
    """Check the hidden states for tokens of a shape.

    Raises:
        ModelOutputError: The value is not an array [*shape, width].
    """
    found = getattr(returned, "shape", ())
    if tuple(found[:2]) != tuple(shape) or len(found) != 3:
        raise ModelOutputError(
            f"for tokens int32{list(shape)} the model must return hidden states float[{shape[0]}, {shape[1]}, width], "
            f"but returned {describe_output(returned)}"
        )


def resolve_vocab_size(declared: int | None, found: int) -> int:
    """Return the number of tokens: the one that the model declares, or else the size of its logits.

    Raises:
        ModelOutputError: The model declares more tokens than its logits have.
    """
    if declared is not None and declared > found:
        raise ModelOutputError(
            f"the model declares vocab_size {declared}, but its logits have {found}; set vocab_size to {found} or less"
        )
    return declared or found


def non_finite_logits() -> NonFiniteLogits:
    """Return the error for logits from which no score or token can be computed."""
    return NonFiniteLogits(
        "the model returned NaN or infinity where a token is scored (only minus infinity, for some tokens, is accepted: "
        "they are masked); check the weights and the dtype (float16 overflows where bfloat16 and float32 do not)"
    )

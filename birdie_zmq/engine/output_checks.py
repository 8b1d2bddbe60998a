"""What a model's function returned, held against what it must return; the same for every framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from birdie_zmq.errors import ModelOutputError


def described(value: Any) -> str:
    """An array by its dtype and shape, anything else by its type."""
    found, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return f"a {type(value).__name__}" if found is None or dtype is None else f"{dtype}{list(found)}"


def vocabulary_of(returned: Any, shape: tuple[int, ...], is_floating: Callable[[Any], bool]) -> int:
    """The last axis of what must be logits for tokens of this shape.

    Args:
        returned: What the model returned.
        shape: Rows and length of the tokens.
        is_floating: Whether an array of the framework holds floating-point numbers.

    Raises:
        ModelOutputError: It is not a floating-point array [*shape, vocabulary].
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
            f"but returned {described(returned)}"
        )
    if not is_floating(returned):
        raise ModelOutputError(f"the model must return floating-point logits, but returned {described(returned)}")
    return int(found[2])


def wrong_score(columns: Sequence[Any], shape: tuple[int, ...]) -> ModelOutputError:
    """What to say where these are not the scores of rows int32[b, t]."""
    rows = shape[0]
    return ModelOutputError(
        f"for int32{list(shape)} score must return (loglikelihood float[{rows}], is_greedy bool[{rows}]), but returned "
        f"{', '.join(map(described, columns))}"
    )


def check_hidden(returned: Any, shape: tuple[int, ...]) -> None:
    """Hold what must be hidden states for tokens of this shape against their form.

    Raises:
        ModelOutputError: It is no array [*shape, width].
    """
    found = getattr(returned, "shape", ())
    if tuple(found[:2]) != tuple(shape) or len(found) != 3:
        raise ModelOutputError(
            f"for tokens int32{list(shape)} the model must return hidden states float[{shape[0]}, {shape[1]}, width], "
            f"but returned {described(returned)}"
        )


def chosen_vocabulary(named: int | None, found: int) -> int:
    """How many tokens there are: as many as the model names, else as many as its logits have.

    Raises:
        ModelOutputError: It names more than its logits have.
    """
    if named is not None and named > found:
        raise ModelOutputError(f"the model names vocab_size {named}, but its logits have {found}")
    return named or found

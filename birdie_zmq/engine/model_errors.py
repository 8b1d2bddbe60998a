"""Errors that the model's own function raises, turned into errors of this package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from birdie_zmq.errors import BirdieError, ModelCallError, OutOfDeviceMemory
from birdie_zmq.sanitize import first_line


@contextmanager
def model_call(inputs: str, is_out_of_memory: Callable[[Exception], bool]) -> Iterator[None]:
    """Convert the errors of a call of the model, and name the call's inputs in them.

    Args:
        inputs: A description of the inputs, such as their dtype and shape.
        is_out_of_memory: Returns whether an error of the framework means that the device is out of memory.

    Raises:
        OutOfDeviceMemory: The call does not fit into device memory.
        ModelCallError: The call raised any other error that is not a BirdieError.
    """
    try:
        yield
    except BirdieError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfDeviceMemory(f"the device is out of memory for {inputs}: {first_line(error)}") from error
        raise ModelCallError(f"the model's function failed on {inputs}: {type(error).__name__}: {error}") from error

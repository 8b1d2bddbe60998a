"""What is said when a model's own function fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from birdie_zmq.errors import BirdieError, ModelCallError, OutOfDeviceMemory


@contextmanager
def named(what: str, has_no_room: Callable[[Exception], bool]) -> Iterator[None]:
    """Say of an error of the model's own function what it was called with.

    Args:
        what: What it was called with.
        has_no_room: Whether an error of the framework says that the device has no room.

    Raises:
        OutOfDeviceMemory: The device has no room for it.
        ModelCallError: Any other error that is not ours.
    """
    try:
        yield
    except BirdieError:
        raise
    except Exception as error:
        if has_no_room(error):
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise OutOfDeviceMemory(f"the device has no room for {what}: {reason}") from error
        raise ModelCallError(f"the model's function failed on {what}: {type(error).__name__}: {error}") from error

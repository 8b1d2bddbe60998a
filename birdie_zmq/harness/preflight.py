"""Finds all requests of an evaluation at its first call, so that an unsupported one is rejected before any is computed.

lm_eval passes the requests of a run to a model by their type: first all log-likelihoods, which may take hours, and
then the prompts. No call or argument before that tells a model which requests follow. ``lm_eval.evaluator.evaluate`` has
them in its local variable ``requests``, and it is a caller of the model's methods, so this module reads that variable of
that one frame. If lm_eval renames it, or if the model is called in another way, nothing is found, and a request is rejected
when its own turn comes. In the same way it finds the task manager, whose metadata is a copy of the model_args.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

from lm_eval.api.instance import Instance

from birdie_zmq.errors import UsageError
from birdie_zmq.harness.model_args import RunArguments

_EVALUATOR = "lm_eval.evaluator"
_REQUESTS = "requests"
_TASK_MANAGER = "task_manager"


def requests_of_run(requests: Sequence[Instance]) -> Mapping[str, Sequence[Instance]]:
    """Return all requests of the evaluation that calls the model, by request type; empty if they are not found.

    Args:
        requests: The requests that the model was called with. One of them must be among those of the evaluation.
    """
    if not requests:
        return {}
    for frame in _evaluator_frames():
        if found := _run_of(requests[0], frame.f_locals.get(_REQUESTS)):
            return found
    return {}


def reject_thinking(requests: Sequence[Instance], arguments: RunArguments) -> None:
    """Reject log-likelihoods if the model is to think.

    Raises:
        UsageError: ``enable_thinking=True`` is set, and there are requests.
    """
    if arguments.enable_thinking and requests:
        tasks = ", ".join(sorted({request.task_name for request in requests if request.task_name}))
        raise UsageError(f"enable_thinking=True is for tasks that generate text; these score log-likelihoods: {tasks}")


def task_metadata() -> object:
    """Return the metadata that the evaluation which creates the model passes to its tasks; None if it is not found."""
    for frame in _evaluator_frames():
        if _TASK_MANAGER in frame.f_locals:
            return getattr(frame.f_locals[_TASK_MANAGER], "metadata", None)
    return None


def _evaluator_frames() -> Iterator[FrameType]:
    """Yield the callers of this module that are functions of lm_eval's evaluator, the innermost first."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__") == _EVALUATOR:
            yield frame
        frame = frame.f_back


def _run_of(request: Instance, value: object) -> dict[str, list[Instance]]:
    """Return a value that holds the requests of a run by their type, with a certain one among them; else nothing."""
    if not isinstance(value, Mapping):
        return {}
    groups = {str(kind): list(items) for kind, items in value.items() if isinstance(items, list)}
    items = [item for group in groups.values() for item in group]
    if len(groups) < len(value) or not all(isinstance(item, Instance) for item in items):
        return {}
    return groups if any(item is request for item in items) else {}

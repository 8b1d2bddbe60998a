"""Finds all requests of an evaluation at its first call, so that an unsupported one is rejected before any is computed.

lm_eval (0.4.13) passes the requests of a run to a model by their type: first all log-likelihoods, which may take hours, and
then the prompts. No call or argument before that tells a model which requests follow. ``lm_eval.evaluator.evaluate`` has
them in its local variable ``requests``, and it is a caller of the model's methods, so this module reads that variable of
that one frame. If lm_eval renames it, or if the model is called in another way, nothing is found, and a request is rejected
when its own turn comes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import FrameType

from lm_eval.api.instance import Instance

_EVALUATOR = "lm_eval.evaluator"
_VARIABLE = "requests"


def requests_of_run(requests: Sequence[Instance]) -> Mapping[str, Sequence[Instance]]:
    """Return all requests of the evaluation that calls the model, by request type; empty if they are not found.

    Args:
        requests: The requests that the model was called with. One of them must be among those of the evaluation.
    """
    if not requests:
        return {}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == _EVALUATOR:
            found = _run_of(requests[0], frame.f_locals.get(_VARIABLE))
            if found:
                return found
        frame = frame.f_back
    return {}


def _run_of(request: Instance, value: object) -> dict[str, list[Instance]]:
    """Return a value that holds the requests of a run by their type, with a certain one among them; else nothing."""
    if not isinstance(value, Mapping):
        return {}
    groups = {str(kind): list(items) for kind, items in value.items() if isinstance(items, list)}
    items = [item for group in groups.values() for item in group]
    if len(groups) < len(value) or not all(isinstance(item, Instance) for item in items):
        return {}
    return groups if any(item is request for item in items) else {}

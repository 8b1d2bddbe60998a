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
    frame = sys._getframe(1)  # noqa: SLF001 - the module's docstring explains why
    while frame is not None:
        if frame.f_globals.get("__name__") == _EVALUATOR:
            found = frame.f_locals.get(_VARIABLE)
            if _is_run_of(requests[0], found):
                return {str(kind): list(items) for kind, items in found.items()}
        frame = frame.f_back  # type: ignore[assignment]
    return {}


def _is_run_of(request: Instance, found: object) -> bool:
    """Return whether a value holds the requests of a run by their type, with a certain one among them."""
    if not isinstance(found, Mapping):
        return False
    groups = list(found.values())
    if not all(isinstance(group, list) and all(isinstance(item, Instance) for item in group) for group in groups):
        return False
    return any(item is request for group in groups for item in group)

"""What lm_eval's requests hold and how it reads their answers, in the forms of all supported versions.

lm_eval 0.4 passes a rolling request as ``(text,)`` and reads a float. lm_eval 0.5 passes ``("", text)`` and reads
``(loglikelihood, False)``. The request shows its form, so that the version of lm_eval need not be known here. From 0.5 on, a
context may be a list of messages instead of a text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lm_eval.api.instance import Instance

from birdie_zmq.errors import UsageError

Render = Callable[[list[dict[str, str]], bool], str]
"""Renders messages as a prompt; the second argument is whether the model's turn begins at the end."""


def context_of(request: Instance, render: Render) -> str:
    """Return the context of a log-likelihood, or the prompt of a generation request.

    Args:
        request: Its first argument is a text, or a list of messages with ``role`` and ``content``. A last message of the
            assistant is continued.
        render: Renders messages with the model's chat template.

    Raises:
        UsageError: The context is neither, or the messages cannot be rendered.
    """
    context: Any = request.args[0]
    if not isinstance(context, list | tuple | dict):
        return str(context)
    if not (
        isinstance(context, list)
        and context
        and all(isinstance(message, dict) and {"role", "content"} <= message.keys() for message in context)
    ):
        raise UsageError(
            f"a request of {request.task_name or 'a task'} has a context of type {type(context).__name__} that is neither a "
            "text nor a list of messages with role and content"
        )
    return render(context, context[-1]["role"] != "assistant")


def request_name(request: Instance, number: int) -> str:
    """Return the user's name for a request, for messages about it."""
    return f"document {request.doc_id} of {request.task_name}" if request.task_name else f"request {number}"


def rolling_text(request: Instance) -> str:
    """Return the text of a rolling request.

    Raises:
        UsageError: The request has a context as well.
    """
    *context, text = request.args
    if any(context):
        raise UsageError(
            f"a loglikelihood_rolling request of {request.task_name or 'a task'} has a context; use loglikelihood for it"
        )
    return str(text)


def rolling_answer(request: Instance, loglikelihood: float) -> float | tuple[float, bool]:
    """Return the answer to a rolling request in the form that its lm_eval reads."""
    return loglikelihood if len(request.args) == 1 else (loglikelihood, False)

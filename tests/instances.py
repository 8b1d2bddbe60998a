"""Requests of lm_eval, made with the constructor of the installed version."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from lm_eval.api.instance import Instance

_TASK_IS_A_FIELD = next(field.name for field in fields(Instance) if field.name in ("idx", "task_name")) == "task_name"
"""From lm_eval 0.5 on, the name of the task and the document's number are arguments; before, they are metadata."""


def instance(
    kind: Any, arguments: Any, index: int = 0, *, task: str | None = None, doc_id: int | None = None, repeats: int = 1
) -> Instance:
    """Make a request; without `task`, it has neither a task nor a document."""
    if _TASK_IS_A_FIELD:
        constructor: Any = Instance
        made: Instance = constructor(kind, {}, arguments, task or "", doc_id=doc_id or 0, idx=index, repeats=repeats)
        return made
    return Instance(kind, {}, arguments, index, metadata=(task, doc_id, None if task is None else repeats))


def rolling_arguments(text: str) -> tuple[str, ...]:
    """Return the arguments of a rolling request, as the installed lm_eval passes them."""
    return ("", text) if _TASK_IS_A_FIELD else (text,)


def rolling_scores(answers: Any) -> list[float]:
    """Return the log-likelihoods of answers to rolling requests, and check that they have the form of this lm_eval."""
    if _TASK_IS_A_FIELD:
        assert all(greedy is False for _, greedy in answers)
        answers = [score for score, _ in answers]
    assert all(isinstance(score, float | int) for score in answers)  # hf returns the integer 0 for an empty text
    return list(map(float, answers))

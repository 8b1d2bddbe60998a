"""The answers of an evaluator in a benchmark's own process."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from birdie_zmq.client.job import Job
from birdie_zmq.engine.evaluator import EvaluatedWork, Evaluator
from birdie_zmq.engine.events import Answered, Notice
from birdie_zmq.types import StepLimits


def answers_of(evaluator: Evaluator, work: EvaluatedWork, limits: StepLimits | None = None) -> list[Any]:
    """Return the answers in the order of the items; notices are printed to standard error."""
    answers: list[Any] = [None] * len(work)
    for event in evaluator.answer(work, limits or StepLimits()):
        match event:
            case Notice(level=level, text=text):
                print(f"{level}: {text}", file=sys.stderr)
            case Answered(indices=indices, answers=found):
                for index, answer in zip(indices, found, strict=True):
                    answers[index] = answer
    return answers


def answers_to_jobs(evaluator: Evaluator, jobs: Iterable[Job], count: int) -> list[Any]:
    """Return the answers to all items of the jobs, in the order of their numbers below `count`."""
    answers: list[Any] = [None] * count
    for job in jobs:
        assert isinstance(job.work, EvaluatedWork)
        for item, answer in zip(job.items, answers_of(evaluator, job.work), strict=True):
            answers[item] = answer
    return answers

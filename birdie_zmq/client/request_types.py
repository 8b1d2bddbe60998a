"""lm_eval's request types: the name, the batching and the answers of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from birdie_zmq.client.batching import Prompt, generate_jobs, loglikelihood_jobs, rolling_jobs
from birdie_zmq.client.job import Job
from birdie_zmq.client.journal_records import RecordedAnswer
from birdie_zmq.settings import ClientSettings

RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT", bound=RecordedAnswer)


@dataclass(frozen=True)
class RequestType(Generic[RequestT, AnswerT]):
    """A request type of lm_eval.

    Attributes:
        name: lm_eval's name for it.
        make_jobs: Makes jobs from some of the requests.
        answer_type: The type of an answer; an answer of any other type is an error of the worker.
    """

    name: str
    make_jobs: Callable[[Sequence[RequestT], ClientSettings], Iterable[Job]]
    answer_type: type[AnswerT]


LOGLIKELIHOOD: RequestType[tuple[str, str], tuple[float, bool]] = RequestType(
    "loglikelihood", loglikelihood_jobs, tuple
)
LOGLIKELIHOOD_ROLLING: RequestType[str, float] = RequestType("loglikelihood_rolling", rolling_jobs, float)
GENERATE_UNTIL: RequestType[Prompt, str] = RequestType("generate_until", generate_jobs, str)

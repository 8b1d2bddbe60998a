"""The request types are those of lm_eval."""

from __future__ import annotations

from lm_eval.api.model import LM

from birdie_zmq.client.request_types import GENERATE_UNTIL, LOGLIKELIHOOD, LOGLIKELIHOOD_ROLLING
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import LogLikelihoodWork


def test_each_name_is_a_method_of_lm_evals_model_class() -> None:
    names = {LOGLIKELIHOOD.name, LOGLIKELIHOOD_ROLLING.name, GENERATE_UNTIL.name}

    assert names == LM.__abstractmethods__


def test_a_request_type_makes_its_own_jobs() -> None:
    (job,) = LOGLIKELIHOOD.make_jobs([("a", "b")], ClientSettings())

    assert job.work == LogLikelihoodWork(pairs=[("a", "b")])

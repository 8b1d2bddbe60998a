"""What a person at the prompt sees of a run that goes on."""

from __future__ import annotations

import re

import pytest
from lm_eval.api.instance import Instance

from birdie_zmq.types import RunStatistics
from harness_model import BirdieZMQ
from tests.integration.conftest import Served


def report(lm: BirdieZMQ) -> RunStatistics:
    lm.get_model_info()
    return lm._description.report


def test_the_bar_says_what_the_report_says(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """The shares at the end of a call are those of what the model process says that it has computed meanwhile."""
    contexts = [f"the {word} sat on the mat {count} times" for word in ("cat", "dog", "owl") for count in range(20)]
    requests = [Instance("loglikelihood", {}, (context, f" and {end}"), 0) for context in contexts for end in "abcd"]
    with BirdieZMQ(model_tag="pair", endpoint=served.endpoint) as lm:
        before = report(lm)
        capsys.readouterr()
        lm.loglikelihood(requests)
        after = report(lm)

    asked = after.tokens_requested - before.tokens_requested
    distinct = (after.tokens_distinct - before.tokens_distinct) / asked
    padding = (after.tokens_padding - before.tokens_padding) / (after.tokens_computed - before.tokens_computed)
    last = capsys.readouterr().err.rpartition("\r")[2]
    assert re.search(rf"240/240 \[\d\d:\d\d, [\d,]+ tokens/s, {padding:.0%} padding, {distinct:.0%} distinct\]", last)

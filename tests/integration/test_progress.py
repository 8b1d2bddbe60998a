"""The progress bar of a run."""

from __future__ import annotations

import re

import pytest

from birdie_zmq.types import RunStatistics
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import Served


def statistics_of(lm: BirdieZMQ) -> RunStatistics:
    lm.get_model_info()
    return lm._description.report


def test_progress_bar_shows_the_shares_of_the_run_statistics(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shares at the end of a call equal those in the difference of the model process's statistics."""
    contexts = [f"the {word} sat on the mat {count} times" for word in ("cat", "dog", "owl") for count in range(20)]
    requests = [instance("loglikelihood", (context, f" and {end}"), 0) for context in contexts for end in "abcd"]
    with BirdieZMQ(model_tag="pair", endpoint=served.endpoint) as lm:
        before = statistics_of(lm)
        capsys.readouterr()
        lm.loglikelihood(requests)
        after = statistics_of(lm)

    requested = after.tokens_requested - before.tokens_requested
    distinct = (after.tokens_distinct - before.tokens_distinct) / requested
    padding = (after.tokens_padding - before.tokens_padding) / (after.tokens_computed - before.tokens_computed)
    last = capsys.readouterr().err.rpartition("\r")[2]
    assert re.search(rf"240/240 \[\d\d:\d\d, [\d,]+ tokens/s, {padding:.0%} padding, {distinct:.0%} distinct\]", last)

"""The bar as a person sees it."""

from __future__ import annotations

import logging
import sys

import pytest

from birdie_zmq.client.progress import Progress
from birdie_zmq.harness.progress_bar import ProgressBar, as_text

KNOWN = Progress(tokens_per_second=12_345.6, padding_share=0.053, distinct_share=0.42, seconds_left=125.0)


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(), ""),
        (KNOWN, "02:05 left, 12,346 tokens/s, 5% padding, 42% distinct"),
        (Progress(tokens_per_second=1.0, padding_share=0.0), "1 tokens/s, 0% padding"),
        (Progress(seconds_left=36_000.0), "10:00:00 left"),
    ],
)
def test_what_is_known_in_few_words(progress: Progress, text: str) -> None:
    assert as_text(progress) == text


def test_the_end_says_how_it_was_and_nothing_of_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("Running", 2) as bar:
        bar.answered()
        bar.progress(KNOWN)
        bar.answered()
    last = capsys.readouterr().err.rpartition("\r")[2]
    assert last.startswith("Running: 100%")
    assert "2/2 [00:00, 12,346 tokens/s, 5% padding, 42% distinct]" in last
    assert "left" not in last


def test_a_bar_that_is_not_wanted_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("Running", 2, disable=True) as bar:
        bar.answered()
        bar.progress(KNOWN)
    assert capsys.readouterr().err == ""


def test_what_is_logged_meanwhile_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger()
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        with ProgressBar("Running", 2) as bar:
            bar.answered()
            logging.getLogger("lm_eval.birdie_zmq").warning("loading demo")
            bar.answered()
    finally:
        logger.removeHandler(handler)
    assert "loading demo" in capsys.readouterr().err.replace("\r", "\n").splitlines()


def test_a_file_is_not_filled_with_bars(capsys: pytest.CaptureFixture[str]) -> None:
    """It is no terminal here."""
    with ProgressBar("Running", 1_000) as bar:
        for _ in range(1_000):
            bar.answered()
            bar.progress(KNOWN)
    assert len(capsys.readouterr().err) < 1_000

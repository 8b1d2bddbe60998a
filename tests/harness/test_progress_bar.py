"""The progress bar as the user sees it."""

from __future__ import annotations

import logging
import sys

import pytest

from birdie_zmq.client.progress import Progress
from birdie_zmq.harness.progress_bar import ProgressBar, format_progress

KNOWN = Progress(tokens_per_second=12_345.6, padding_share=0.053, distinct_share=0.42, seconds_left=125.0)


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(), ""),
        (KNOWN, "about 2:05 left, 12,346 tokens/s, 5% padding, 42% distinct"),
        (Progress(tokens_per_second=1.0, padding_share=0.0), "1 tokens/s, 0% padding"),
        (Progress(seconds_left=33.4), "about 0:33 left"),
        (Progress(seconds_left=36_000.0), "about 10:00:00 left"),
    ],
)
def test_progress_text_shows_known_values(progress: Progress, text: str) -> None:
    assert format_progress(progress) == text


def test_finished_bar_shows_no_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("Running", 2) as bar:
        bar.answered(1)
        bar.progress(KNOWN)
        bar.answered(1)
    last = capsys.readouterr().err.rpartition("\r")[2]
    assert last.startswith("Running: 100%")
    assert "2/2 [00:00, 12,346 tokens/s, 5% padding, 42% distinct]" in last
    assert "left" not in last


def test_disabled_bar_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("Running", 2, disable=True) as bar:
        bar.answered(1)
        bar.progress(KNOWN)
    assert capsys.readouterr().err == ""


class _Tee:
    """What programs put in place of standard error: it has nothing but what print needs."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None: ...


def test_bar_is_written_to_a_stream_that_only_has_write_and_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", tee := _Tee())
    with ProgressBar("Running", 2) as bar:
        bar.answered(2)
    assert "Running: 100%" in tee.text


def test_bar_without_standard_error_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with ProgressBar("Running", 2) as bar:
        bar.answered(1)
        bar.progress(KNOWN)
    assert capfd.readouterr() == ("", "")


def test_log_lines_do_not_mix_with_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger()
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        with ProgressBar("Running", 2) as bar:
            bar.answered(1)
            logging.getLogger("lm_eval.birdie_zmq").warning("loading demo")
            bar.answered(1)
    finally:
        logger.removeHandler(handler)
    assert "loading demo" in capsys.readouterr().err.replace("\r", "\n").splitlines()


def test_bar_written_to_a_file_stays_short(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard error is not a terminal here."""
    with ProgressBar("Running", 1_000) as bar:
        for _ in range(1_000):
            bar.answered(1)
            bar.progress(KNOWN)
    assert len(capsys.readouterr().err) < 1_000

"""The results file survives a death at any byte, and keeps settings apart."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from birdie_zmq.errors import UsageError
from birdie_zmq.tools.watch.core import Outcome, Sighting
from birdie_zmq.tools.watch.results import Measured, Metric, ResultsFile, metrics_of

SETTINGS = {"tasks": "['demo_choice']"}


def sighting(step: int) -> Sighting:
    return Sighting(step, f"/run/step_{step}", None, f"state {step}")


def metric(step: int, value: float = 0.5, stderr: float | None = 0.1) -> Metric:
    return Metric(step, "demo_choice", "acc", "none", value, stderr)


def write(folder: Path) -> bytes:
    """Write two evaluated checkpoints and a failed one, and return the content."""
    with contextlib.closing(ResultsFile(folder, SETTINGS)) as results:
        results.add(sighting(1), "evaluated", Measured([metric(1), metric(1, -math.inf, None)], {"seconds": 1.5}))
        results.add(sighting(2), "failed", error="damaged")
        results.add(sighting(3), "evaluated", Measured([metric(3)], {"seconds": 2.5}))
    return results.path.read_bytes()


def test_results_are_read_again(tmp_path: Path) -> None:
    written = write(tmp_path)

    with contextlib.closing(ResultsFile(tmp_path, SETTINGS)) as results:
        assert results.metrics == [metric(1), metric(1, -math.inf, None), metric(3)]
        assert results.outcomes == {
            1: Outcome("evaluated", "state 1"),
            2: Outcome("failed", "state 2"),
            3: Outcome("evaluated", "state 3"),
        }
    assert results.path.read_bytes() == written
    lines = [json.loads(line) for line in written.splitlines()]
    assert lines[0] == {"settings": SETTINGS}
    assert lines[1] == {
        **{"step": 1, "task": "demo_choice", "metric": "acc", "filter": "none", "value": 0.5, "stderr": 0.1}
    }
    assert lines[4]["error"] == "damaged"


def test_write_that_was_cut_off_anywhere_is_undone(tmp_path: Path) -> None:
    written = write(tmp_path)
    path = tmp_path / "results.jsonl"
    whole = [0, *(i + 1 for i, byte in enumerate(written) if byte == ord("\n"))]
    # The ends of the settings and of the three checkpoints, whose records are 3, 1 and 2 lines long.
    kept = [whole[1], whole[4], whole[5], whole[7]]
    for size in range(len(written)):
        path.write_bytes(written[:size])

        with contextlib.closing(ResultsFile(tmp_path, SETTINGS)) as results:
            expected = max((end for end in kept if end <= size), default=0)
            assert results.outcomes.keys() == set(range(1, kept.index(expected) + 1 if expected else 1))
        assert path.read_bytes() == (written[:expected] or written[: whole[1]])


def test_two_watches_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        contextlib.closing(ResultsFile(tmp_path, SETTINGS)),
        pytest.raises(UsageError, match="another birdie-zmq watch writes to"),
    ):
        ResultsFile(tmp_path, SETTINGS)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    written = write(tmp_path)

    with pytest.raises(UsageError, match=r"one curve must not mix two: limit was None and is '8'"):
        ResultsFile(tmp_path, {**SETTINGS, "limit": "8"})
    assert (tmp_path / "results.jsonl").read_bytes() == written


@pytest.mark.parametrize("line", ["not JSON", '{"foo": 1}', "[1]"])
def test_foreign_file_is_left_alone(tmp_path: Path, line: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(f"{line}\n{line}\n")

    with pytest.raises(UsageError, match=r"line 1 of .* is not"):
        ResultsFile(tmp_path, SETTINGS)
    assert path.read_text() == f"{line}\n{line}\n"


def test_numbers_of_lm_eval_become_metrics() -> None:
    results = {
        "choice": {"alias": "choice", "acc,none": np.float64(0.5), "acc_stderr,none": 0.1, "sample_len": 8},
        "say": {"exact_match,strict": 1, "exact_match_stderr,strict": "N/A", "text,none": "abc", "ok,none": True},
    }

    assert metrics_of(7, results) == [
        Metric(7, "choice", "acc", "none", 0.5, 0.1),
        Metric(7, "say", "exact_match", "strict", 1.0, None),
    ]

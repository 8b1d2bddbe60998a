"""The page and the pictures of a curve."""

from __future__ import annotations

import contextlib
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from birdie_zmq.tools.compare import plots
from birdie_zmq.tools.watch.core import Sighting
from birdie_zmq.tools.watch.curve import CurveWriter, series_of
from birdie_zmq.tools.watch.results import Measured, Metric, ResultsFile

HOSTILE = "</p><script>alert(1)</script>"


def metric(
    step: int, value: float, task: str = "choice", stderr: float | None = 0.1, filter_name: str = "none"
) -> Metric:
    return Metric(step, task, "acc", filter_name, value, stderr)


def write(folder: Path, *steps: list[Metric]) -> str:
    """Write the results and the curve of some steps, and return the page."""
    with contextlib.closing(ResultsFile(folder, {})) as results:
        for metrics in steps:
            results.add(Sighting(metrics[0].step, "/run", None, ""), "evaluated", Measured(metrics, {}))
        results.add(Sighting(99, "/run", None, ""), "deleted")
        CurveWriter(folder, results).write()
    return (folder / "curve.html").read_text()


def test_series_are_sorted_by_step_and_kept_apart() -> None:
    series = series_of([metric(2, 0.2), metric(2, 0.7, filter_name="strict"), metric(1, 0.1)])

    assert [(each.name, [m.value for m in each.metrics]) for each in series] == [
        ("choice acc", [0.1, 0.2]),
        ("choice acc,strict", [0.7]),
    ]


def test_page_shows_values_pictures_and_other_steps(tmp_path: Path) -> None:
    page = write(tmp_path, [metric(1, 0.25), metric(1, 9.5, task="roll", stderr=None)], [metric(2, 0.75)])

    assert "2 checkpoints, up to step 2" in page
    assert "step 99: deleted" in page
    assert "0.7500 ± 0.1000" in page
    assert "9.5000" in page
    assert page.count("<picture>") == 2
    pngs = sorted((tmp_path / "curves").iterdir())
    assert [png.name for png in pngs] == ["choice_acc.png", "roll_acc.png"]
    assert all(png.read_bytes().startswith(b"\x89PNG") for png in pngs)
    HTMLParser().feed(page)


def test_names_are_escaped_and_numbers_that_are_not_finite_are_left_out_of_the_plot(tmp_path: Path) -> None:
    page = write(tmp_path, [metric(1, math.nan, task=HOSTILE)], [metric(2, 0.5, task=HOSTILE, stderr=math.inf)])

    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert re.search(r"<td class=n>nan ± 0.1000</td>", page)


def test_band_reaches_1_96_standard_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def record(*arguments: object) -> bytes:
        drawn.append(arguments[:4])
        return b""

    monkeypatch.setattr(plots, "curve", record)
    write(tmp_path, [metric(1, 0.5, stderr=0.1)], [metric(2, 0.6, stderr=None)])

    assert drawn[0] == ([1, 2], [0.5, 0.6], [pytest.approx(0.196), 0.0], "choice acc")


def test_without_matplotlib_there_is_no_curve_but_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    with pytest.raises(FileNotFoundError):
        write(tmp_path, [metric(1, 0.25)])
    assert "pip install 'birdie-zmq[compare]'" in caplog.text

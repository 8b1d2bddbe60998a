"""``birdie-zmq compare`` on folders as lm_eval writes them: its output, its report and its exit status."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from birdie_zmq.cli import compare
from birdie_zmq.cli.main import main
from tests.tools.compare.lines import TIME, choice, generated, rolling, write

HOSTILE = "\x1b[2J\x00</p><script>alert(1)</script><img src=http://x/y>"


@pytest.fixture
def a(tmp_path: Path) -> Path:
    write(tmp_path / "a", "pick_one", [choice(i, [-1.0, -2.0 - i]) for i in range(5)], acc=1.0)
    write(tmp_path / "a", "roll", [rolling(0, -50.0)], word_perplexity=3.5)
    return write(tmp_path / "a", "say", [generated(0, "yes")], exact_match=1.0)


@pytest.fixture
def b(tmp_path: Path) -> Path:
    write(tmp_path / "b", "pick_one", [choice(i, [-1.0, -2.0 - i]) for i in reversed(range(5))], acc=1.0)
    write(tmp_path / "b", "roll", [rolling(0, -50.0)], word_perplexity=3.5)
    return write(tmp_path / "b", "say", [generated(0, "yes")], exact_match=1.0)


def test_equal_runs_exit_with_0(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(a), str(b)]) == 0

    printed = capsys.readouterr().out
    assert printed.count("agrees") == 3
    assert re.search(r"word_perplexity +3\.5000 +3\.5000 +0", printed)


def test_a_flip_exits_with_1_and_is_reported(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(b, "pick_one", [choice(i, [-1.0, -2.0 - i] if i != 3 else [-5.0, -1.0]) for i in range(5)], acc=0.8)

    assert main(["compare", str(a), str(b)]) == 1

    printed = capsys.readouterr().out
    assert "pick_one: document 3: the top choice is 0 in A and 1 in B" in printed
    assert "pick_one: document 3, response 0: -1.0000 and -5.0000, difference 4" in printed
    assert re.search(r"acc +1\.0000 +0\.8000 +-0\.2000", printed)


def test_long_names_wrap_and_are_never_truncated(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, metric = "task_" + "t" * 60, "metric_" + "m" * 60
    for folder in (a, b):
        write(folder, task, [rolling(0, -1.0)], TIME, **{metric: 0.25})

    assert main(["compare", str(a), str(b)]) == 0

    printed = capsys.readouterr().out
    assert (printed.count("t" * 5) > 0, printed.count("m" * 5) > 0) == (True, True)
    assert sum(line.count("m") for line in printed.splitlines() if "mm" in line) >= 60
    assert "0.2500" in printed
    assert "…" not in printed


def test_threshold_decides_whether_runs_agree(a: Path, b: Path) -> None:
    write(b, "roll", [rolling(0, -50.25)])

    assert main(["compare", str(a), str(b)]) == 1
    assert main(["compare", str(a), str(b), "--threshold", "0.3"]) == 0


def test_task_missing_in_one_run_is_a_difference(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(a, "extra", [rolling(7, -1.0)])

    assert main(["compare", str(a), str(b)]) == 1
    assert "extra: only in A: document 7" in capsys.readouterr().out


def test_newest_of_several_results_is_used_and_reported(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(b, "roll", [rolling(0, -99.0)], time="2025-12-31T23-59-59.999999", word_perplexity=9.0)

    assert main(["compare", str(a), str(b)]) == 0

    printed = capsys.readouterr().out
    assert "has 2 results of roll; using the newest: samples_roll_2026-01-02" in printed
    assert "9.0000" not in printed


@pytest.mark.parametrize("problem", ["no folder", "no samples", "no json"])
def test_unreadable_input_is_named(
    a: Path, b: Path, tmp_path: Path, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"no folder": tmp_path / "nothing", "no samples": tmp_path / "empty", "no json": b}[problem]
    (tmp_path / "empty").mkdir()
    (broken,) = b.rglob("samples_roll_*")
    broken.write_text(json.dumps(rolling(0, -1.0)) + "\n\nhalf a line")

    assert main(["compare", str(a), str(other)]) == 2

    error = capsys.readouterr().err
    expected = {"no folder": "there is no folder", "no samples": "--log_samples", "no json": f"{broken}, line 3"}
    assert expected[problem] in error


class ParsedPage(HTMLParser):
    """The tags and addresses of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "action")]


def test_page_is_self_contained_and_escapes_model_output(a: Path, b: Path, tmp_path: Path) -> None:
    write(a, "say", [generated(0, "yes " + HOSTILE)])
    write(a, "pick_<b>one", [choice(0, [-1.0, -2.0])])

    assert main(["compare", str(a), str(b), "--output", str(tmp_path / "page")]) == 1

    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    parsed = ParsedPage(text)
    assert {"script", "link", "iframe", "object"}.isdisjoint(parsed.tags)
    assert text.count("<script") == 0
    assert "&lt;script&gt;alert(1)" in text
    assert "pick_&lt;b&gt;one" in text
    assert "\x00" not in text
    assert "\x1b" not in text
    assert all(address.startswith(("data:image/png;base64,", "#task-")) for address in parsed.addresses)
    assert parsed.tags.count("img") == 4  # two plots for each of two tasks that have scores in both runs
    assert "prefers-color-scheme: dark" in text
    assert "<title>2 of 4 tasks differ" in text


def test_plots_are_pngs_in_both_themes(a: Path, b: Path) -> None:
    from birdie_zmq.tools.compare import plots
    from birdie_zmq.tools.compare.runs import find_run

    (report, *_) = compare.compare_runs(find_run(a), find_run(b), 1e-3, 10)

    images = {plot(report, theme) for plot in (plots.scatter, plots.histogram) for theme in (plots.LIGHT, plots.DARK)}

    assert len(images) == 4
    assert all(png.startswith(b"\x89PNG") for png in images)


def test_table_is_printed_without_matplotlib(
    a: Path, b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert main(["compare", str(a), str(b), "--output", str(tmp_path / "page")]) == 0

    printed = capsys.readouterr().out
    assert printed.count("agrees") == 3
    assert "pip install 'birdie-zmq[compare]'" in printed
    assert not (tmp_path / "page").exists()


def test_unwritable_page_is_named(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (a / "file").touch()

    assert main(["compare", str(a), str(b), "--output", str(a / "file" / "page")]) == 2
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("threshold", ["-1", "nan", "much"])
def test_threshold_must_be_at_least_0(a: Path, b: Path, threshold: str) -> None:
    with pytest.raises(SystemExit):
        main(["compare", str(a), str(b), f"--threshold={threshold}"])

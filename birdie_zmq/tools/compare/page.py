"""A comparison as one page that needs nothing else: no script, nothing from outside, and every text escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from birdie_zmq._version import __version__
from birdie_zmq.errors import UsageError
from birdie_zmq.sanitize import printable
from birdie_zmq.tools.compare import plots
from birdie_zmq.tools.compare.comparing import TaskReport
from birdie_zmq.tools.compare.numbers import change, gap, shown
from birdie_zmq.tools.compare.runs import Run
from birdie_zmq.tools.compare.style import STYLE

MOST_PLOTS = 60
"""Tasks that are drawn, those with the largest differences; each takes some 80 kB."""


def write_page(folder: Path, a: Run, b: Run, reports: Sequence[TaskReport], threshold: float) -> Path:
    """Write ``index.html`` into a folder, which is made if it is not there.

    Args:
        folder: Where to.
        a: The one run.
        b: The other.
        reports: A report for each task.
        threshold: How many nats two log-likelihoods may differ.

    Returns:
        The page.

    Raises:
        UsageError: It cannot be written.
    """
    page = folder / "index.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page.write_text(render(a, b, reports, threshold), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {page}: {error.strerror}") from error
    return page


def render(a: Run, b: Run, reports: Sequence[TaskReport], threshold: float) -> str:
    """The text of the page; arguments as for `write_page`."""
    differing = [report for report in reports if not report.agrees]
    drawn = sorted((r for r in reports if r.points), key=lambda report: -report.largest)[:MOST_PLOTS]
    verdict = f"{len(differing)} of {len(reports)} tasks differ" if differing else f"All {len(reports)} tasks agree"
    notes = "".join(f"<p class=note>{_text(note)}</p>" for note in [*a.notes, *b.notes])
    sections = "".join(_section(i, report, report in drawn) for i, report in enumerate(reports))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{verdict}: two runs of lm_eval</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<p class="verdict {"bad" if differing else "good"}">{verdict}</p>
<h1>Two runs of lm_eval</h1>
<dl><dt>A</dt><dd>{_text(str(a.folder))}</dd><dt>B</dt><dd>{_text(str(b.folder))}</dd></dl>
<p class=note>Two log-likelihoods of one response may differ by {threshold:g} nats. Flips, texts that differ and samples
that only one run has count as differences too.</p>
{notes}
</header>
{_summary(reports)}
{sections}
<footer>birdie-zmq {__version__} compare</footer>
</main>
</body>
</html>
"""


def _text(text: str) -> str:
    return html.escape(printable(text), quote=True)


def _breakable(name: str) -> str:
    """A name of a task or metric, which may be broken behind an underscore or a comma."""
    return _text(name).replace("_", "_<wbr>").replace(",", ",<wbr>")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], words: frozenset[int] = frozenset({0})) -> str:
    """A table of cells that are HTML already; the columns of `words` are not numbers."""

    def cell(kind: str, i: int, content: str) -> str:
        return f"<{kind}{'' if i in words else ' class=n'}>{content}</{kind}>"

    top = "".join(cell("th", i, name) for i, name in enumerate(head))
    body = "".join(f"<tr>{''.join(cell('td', i, c) for i, c in enumerate(row))}</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def _badge(report: TaskReport) -> str:
    return "<span class='badge good'>agrees</span>" if report.agrees else "<span class='badge bad'>differs</span>"


def _summary(reports: Sequence[TaskReport]) -> str:
    rows = []
    for i, report in enumerate(reports):
        scored = bool(report.finite_differences or report.largest)
        name, a, b = report.metrics[0] if report.metrics else ("", None, None)
        rows.append(
            [
                f"<a href='#task-{i}'>{_breakable(report.task)}</a>",
                _badge(report),
                f"{report.compared:,}",
                _count(report.missing),
                gap(report.largest) if scored else "-",
                gap(report.mean) if scored else "-",
                _count(report.flip_count),
                _count(report.text_count),
                _breakable(name),
                shown(a),
                shown(b),
                change(a, b),
            ]
        )
    head = ["task", "", "samples", "missing", "largest", "mean", "flips", "texts", "metric", "A", "B", "B - A"]
    return f"<section><h2>Tasks</h2>{_table(head, rows, frozenset({0, 1, 8}))}</section>"


def _count(number: int) -> str:
    return f"<b class=bad>{number:,}</b>" if number else "0"


def _section(index: int, report: TaskReport, drawn: bool) -> str:
    parts = [_figure(report) if drawn else "", _facts(report)]
    if report.metrics:
        rows = [[_text(name), shown(a), shown(b), change(a, b)] for name, a, b in report.metrics]
        parts.append(f"<h3>Metrics</h3>{_table(['metric', 'A', 'B', 'B - A'], rows)}")
    parts.append(_documents("Only in A", report.missing_in_b))
    parts.append(_documents("Only in B", report.missing_in_a))
    parts.append(_documents("Asked otherwise", report.asked_otherwise))
    if report.flips:
        rows = [[_text(flip.doc_id), _text(flip.what)] for flip in report.flips]
        more = _more(report.flip_count - len(rows))
        parts.append(f"<h3>Flips</h3>{_table(['document', 'what'], rows, frozenset({0, 1}))}{more}")
    if report.texts:
        rows = [[_text(t.doc_id), f"{t.position:,}", _excerpt(t.a, t.b), _excerpt(t.b, t.a)] for t in report.texts]
        more = _more(report.text_count - len(rows))
        head = ["document", "character", "A", "B"]
        parts.append(f"<h3>Texts that differ</h3>{_table(head, rows, frozenset({0, 2, 3}))}{more}")
    if report.worst:
        rows = [
            [_text(w.doc_id), str(w.response), _over(w.difference, report.threshold), shown(w.a, 6), shown(w.b, 6)]
            for w in report.worst
        ]
        head = ["document", "response", "|B - A|", "A", "B"]
        parts.append(f"<h3>Largest differences</h3>{_table(head, rows)}")
    is_open = "" if report.agrees else " open"
    title = f"<summary><h2>{_text(report.task)}</h2>{_badge(report)}</summary>"
    return f"<details id='task-{index}'{is_open}>{title}{''.join(parts)}</details>"


def _facts(report: TaskReport) -> str:
    text = f"{report.compared:,} samples compared, {report.responses:,} responses"
    if report.points_step > 1:
        text += f"; every {report.points_step}th response is drawn"
    return f"<p class=note>{text}.</p>"


def _figure(report: TaskReport) -> str:
    task = _text(report.task)
    return (
        f"<div class=plots>{_picture(plots.scatter, report, f'Log-likelihoods of {task} in A against B')}"
        f"{_picture(plots.histogram, report, f'How often each difference of {task} occurs')}</div>"
    )


def _picture(draw: Callable[[TaskReport, plots.Theme], bytes], report: TaskReport, about: str) -> str:
    light, dark = (base64.b64encode(draw(report, theme)).decode() for theme in (plots.LIGHT, plots.DARK))
    return (
        f"<picture><source media='(prefers-color-scheme: dark)' srcset='data:image/png;base64,{dark}'>"
        f"<img alt='{about}' width=539 height=374 src='data:image/png;base64,{light}'></picture>"
    )


def _documents(title: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    shown_names, left = names[:200], len(names) - 200
    return f"<h3>{title}: {len(names):,}</h3><p>{', '.join(map(_text, shown_names))}</p>{_more(left)}"


def _more(left: int) -> str:
    return f"<p class=note>and {left:,} more</p>" if left > 0 else ""


def _over(value: float, threshold: float) -> str:
    return f"<b class=bad>{gap(value)}</b>" if value > threshold else gap(value)


def _excerpt(text: str, other: str) -> str:
    """A text with what follows the common beginning marked."""
    at = next((i for i, (x, y) in enumerate(zip(text, other, strict=False)) if x != y), min(len(text), len(other)))
    return f"<code>{_text(text[:at])}<mark>{_text(text[at:]) or '(ends)'}</mark></code>"

"""Writes a comparison as a self-contained HTML page: no script, no external resource, and every text escaped."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from birdie_zmq.errors import UsageError
from birdie_zmq.tools.compare import plots
from birdie_zmq.tools.compare.comparing import TaskReport, first_difference
from birdie_zmq.tools.compare.numbers import format_delta, format_difference, format_number
from birdie_zmq.tools.compare.runs import Run
from birdie_zmq.tools.html_page import escape, render_page

MAX_PLOTS = 60
"""Maximum number of tasks with plots: the tasks with the largest differences. The plots of a task take about 80 kB."""


def write_page(folder: Path, a: Run, b: Run, reports: Sequence[TaskReport], threshold: float) -> Path:
    """Write ``index.html`` into a folder, which is created if necessary.

    Args:
        folder: The output folder.
        a: The first run.
        b: The second run.
        reports: A report for each task.
        threshold: Allowed difference of two log-likelihoods, in nats.

    Returns:
        The path of the page.

    Raises:
        UsageError: The page cannot be written.
    """
    page = folder / "index.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page.write_text(render(a, b, reports, threshold), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {page}: {error.strerror}") from error
    return page


def render(a: Run, b: Run, reports: Sequence[TaskReport], threshold: float) -> str:
    """Return the HTML of the page; arguments as for `write_page`."""
    differing = [report for report in reports if not report.agrees]
    plotted = sorted((r for r in reports if r.points), key=lambda report: -report.max_difference)[:MAX_PLOTS]
    verdict = f"{len(differing)} of {len(reports)} tasks differ" if differing else f"All {len(reports)} tasks agree"
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in [*a.notes, *b.notes])
    sections = "".join(_section(i, report, report in plotted) for i, report in enumerate(reports))
    header = f"""<p class="verdict {"bad" if differing else "good"}">{verdict}</p>
<h1>Two lm_eval runs</h1>
<dl><dt>A</dt><dd>{escape(str(a.folder))}</dd><dt>B</dt><dd>{escape(str(b.folder))}</dd></dl>
<p class=note>Allowed difference of the log-likelihoods of a response: {threshold:g} nats. Flips, differing texts and samples
of only one run also count as differences.</p>
{notes}"""
    return render_page(f"{verdict}: two lm_eval runs", header, f"{_summary(reports)}\n{sections}", "compare")


def _breakable(name: str) -> str:
    """Escape the name of a task or metric, and allow line breaks after an underscore or a comma."""
    return escape(name).replace("_", "_<wbr>").replace(",", ",<wbr>")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: frozenset[int] = frozenset({0})) -> str:
    """Return a table of cells that are HTML already; columns other than `text_columns` hold numbers."""

    def cell(kind: str, i: int, content: str) -> str:
        return f"<{kind}{'' if i in text_columns else ' class=n'}>{content}</{kind}>"

    top = "".join(cell("th", i, name) for i, name in enumerate(head))
    body = "".join(f"<tr>{''.join(cell('td', i, c) for i, c in enumerate(row))}</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def _badge(report: TaskReport) -> str:
    return "<span class='badge good'>agrees</span>" if report.agrees else "<span class='badge bad'>differs</span>"


def _summary(reports: Sequence[TaskReport]) -> str:
    rows = []
    for i, report in enumerate(reports):
        scored = bool(report.finite_differences or report.max_difference)
        name, a, b = report.metrics[0] if report.metrics else ("", None, None)
        rows.append(
            [
                f"<a href='#task-{i}'>{_breakable(report.task)}</a>",
                _badge(report),
                f"{report.compared:,}",
                _count(report.missing),
                format_difference(report.max_difference) if scored else "-",
                format_difference(report.mean_difference) if scored else "-",
                _count(report.flip_count),
                _count(report.text_count),
                _breakable(name),
                format_number(a),
                format_number(b),
                format_delta(a, b),
            ]
        )
    head = ["task", "", "samples", "missing", "max |d|", "mean |d|", "flips", "texts", "metric", "A", "B", "B - A"]
    return f"<section><h2>Tasks</h2>{_table(head, rows, frozenset({0, 1, 8}))}</section>"


def _count(number: int) -> str:
    return f"<b class=bad>{number:,}</b>" if number else "0"


def _section(index: int, report: TaskReport, plotted: bool) -> str:
    parts = [_figure(report) if plotted else "", _facts(report)]
    if report.metrics:
        rows = [[escape(name), format_number(a), format_number(b), format_delta(a, b)] for name, a, b in report.metrics]
        parts.append(f"<h3>Metrics</h3>{_table(['metric', 'A', 'B', 'B - A'], rows)}")
    parts.append(_documents("Only in A", report.missing_in_b))
    parts.append(_documents("Only in B", report.missing_in_a))
    parts.append(_documents("Different requests", report.request_changed))
    if report.flips:
        rows = [[escape(flip.doc_id), escape(flip.what)] for flip in report.flips]
        more = _more(report.flip_count - len(rows))
        parts.append(f"<h3>Flips</h3>{_table(['document', 'what'], rows, frozenset({0, 1}))}{more}")
    if report.texts:
        rows = [[escape(t.doc_id), f"{t.position:,}", _excerpt(t.a, t.b), _excerpt(t.b, t.a)] for t in report.texts]
        more = _more(report.text_count - len(rows))
        head = ["document", "character", "A", "B"]
        parts.append(f"<h3>Differing texts</h3>{_table(head, rows, frozenset({0, 2, 3}))}{more}")
    if report.worst:
        rows = [
            [
                escape(w.doc_id),
                str(w.response),
                _over(w.difference, report.threshold),
                format_number(w.a, 6),
                format_number(w.b, 6),
            ]
            for w in report.worst
        ]
        head = ["document", "response", "|B - A|", "A", "B"]
        parts.append(f"<h3>Largest differences</h3>{_table(head, rows)}")
    is_open = "" if report.agrees else " open"
    title = f"<summary><h2>{escape(report.task)}</h2>{_badge(report)}</summary>"
    return f"<details id='task-{index}'{is_open}>{title}{''.join(parts)}</details>"


def _facts(report: TaskReport) -> str:
    text = f"{report.compared:,} samples compared, {report.responses:,} responses"
    if report.points_stride > 1:
        text += f"; every {report.points_stride}th response is plotted"
    return f"<p class=note>{text}.</p>"


def _figure(report: TaskReport) -> str:
    task = escape(report.task)
    return (
        f"<div class=plots>{_picture(plots.scatter, report, f'Log-likelihoods of {task} in A against B')}"
        f"{_picture(plots.histogram, report, f'Distribution of the differences of {task}')}</div>"
    )


def _picture(plot: Callable[[TaskReport, plots.Theme], bytes], report: TaskReport, about: str) -> str:
    light, dark = (base64.b64encode(plot(report, theme)).decode() for theme in (plots.LIGHT, plots.DARK))
    return (
        f"<picture><source media='(prefers-color-scheme: dark)' srcset='data:image/png;base64,{dark}'>"
        f"<img alt='{about}' width=539 height=374 src='data:image/png;base64,{light}'></picture>"
    )


def _documents(title: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    shown_names, left = names[:200], len(names) - 200
    return f"<h3>{title}: {len(names):,}</h3><p>{', '.join(map(escape, shown_names))}</p>{_more(left)}"


def _more(left: int) -> str:
    return f"<p class=note>and {left:,} more</p>" if left > 0 else ""


def _over(value: float, threshold: float) -> str:
    return f"<b class=bad>{format_difference(value)}</b>" if value > threshold else format_difference(value)


def _excerpt(text: str, other: str) -> str:
    """Return a text with everything after the common prefix highlighted."""
    at = first_difference(text, other)
    return f"<code>{escape(text[:at])}<mark>{escape(text[at:]) or '(ends)'}</mark></code>"

"""Plots of a task's log-likelihoods, as PNG; the one place that imports matplotlib."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from birdie_zmq.tools.compare.comparing import TaskReport

_SIZE_INCHES = (4.9, 3.4)
_DPI = 110
_BINS = 41


@dataclass(frozen=True)
class Theme:
    """The colours of a plot, on the background of the page."""

    background: str
    text: str
    faint: str
    points: str
    over: str


LIGHT = Theme("#ffffff", "#1f2328", "#c5ccd3", "#0b62c4", "#c1121f")
DARK = Theme("#161b22", "#e6edf3", "#49515c", "#6cb2ff", "#ff7b72")


def scatter(report: TaskReport, theme: Theme) -> bytes:
    """Log-likelihoods in A against those in B, in nats; a PNG. What is over the threshold has a colour of its own.

    Args:
        report: A task that has points.
        theme: The colours.
    """
    figure, axes = _figure(theme)
    # Of many responses only some are drawn, and the largest differences always.
    points = [*report.points, *((w.a, w.b) for w in report.worst if math.isfinite(w.difference))]
    numbers = [number for point in points for number in point]
    margin = (max(numbers) - min(numbers)) * 0.05 or 1.0
    ends = (min(numbers) - margin, max(numbers) + margin)
    axes.plot(ends, ends, color=theme.faint, linewidth=1, zorder=1)
    for is_over, colour, size in ((False, theme.points, 14), (True, theme.over, 30)):
        some = [point for point in points if (abs(point[1] - point[0]) > report.threshold) is is_over]
        axes.scatter(
            [x for x, _ in some],
            [y for _, y in some],
            s=size,
            color=colour,
            alpha=0.6,
            linewidths=0,
            zorder=2 + is_over,
        )
    axes.set(xlim=ends, ylim=ends, xlabel="log-likelihood in A, nats", ylabel="in B, nats")
    return _png(figure, axes, theme)


def histogram(report: TaskReport, theme: Theme) -> bytes:
    """How often each difference B - A occurs, in nats; a PNG.

    Args:
        report: A task that has points.
        theme: The colours.
    """
    figure, axes = _figure(theme)
    differences = [y - x for x, y in report.points]
    reach = max(map(abs, differences)) or 1e-9  # All equal: one bar in the middle.
    axes.hist(differences, bins=_BINS, range=(-reach, reach), color=theme.points)
    axes.set_yscale("symlog", linthresh=1)
    axes.set(xlabel="B - A, nats", ylabel="responses", xlim=(-reach * 1.05, reach * 1.05), ylim=(0, None))
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
    axes.xaxis.get_offset_text().set_color(theme.text)
    return _png(figure, axes, theme)


def _figure(theme: Theme) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, facecolor=theme.background, layout="constrained")
    return figure, figure.subplots()


def _png(figure: Figure, axes: Axes, theme: Theme) -> bytes:
    _colour(axes, theme)
    written = io.BytesIO()
    figure.savefig(written, format="png", facecolor=theme.background, metadata={"Software": None})
    return written.getvalue()


def _colour(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.background)
    axes.tick_params(colors=theme.text, which="both", labelsize=9)
    axes.minorticks_off()
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(theme.text)
    for name, spine in axes.spines.items():
        spine.set_color(theme.faint)
        spine.set_visible(name in ("left", "bottom"))

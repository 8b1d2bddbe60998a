"""Plots of a task's log-likelihoods, as PNG, and of a metric over steps; the only module that imports matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from birdie_zmq.tools.compare.comparing import TaskReport

_SIZE_INCHES = (4.9, 3.4)
_DPI = 110
_BINS = 41


@dataclass(frozen=True)
class Theme:
    """The colours of a plot on the page."""

    background: str
    text: str
    faint: str
    points: str
    over: str


LIGHT = Theme("#ffffff", "#1f2328", "#c5ccd3", "#0b62c4", "#c1121f")
DARK = Theme("#161b22", "#e6edf3", "#49515c", "#6cb2ff", "#ff7b72")


def scatter(report: TaskReport, theme: Theme) -> bytes:
    """Plot log-likelihoods in A against those in B, in nats, as a PNG; points above the threshold are highlighted.

    Args:
        report: A task with points.
        theme: The colours.
    """
    figure, axes = new_figure(theme)
    # Of many responses only a sample is plotted, but always the largest differences.
    points = [*report.points, *((w.a, w.b) for w in report.worst if math.isfinite(w.difference))]
    numbers = [number for point in points for number in point]
    margin = (max(numbers) - min(numbers)) * 0.05 or 1.0
    limits = (min(numbers) - margin, max(numbers) + margin)
    axes.plot(limits, limits, color=theme.faint, linewidth=1, zorder=1)
    for is_over, colour, size in ((False, theme.points, 14), (True, theme.over, 30)):
        selected = [point for point in points if (abs(point[1] - point[0]) > report.threshold) is is_over]
        axes.scatter(
            [x for x, _ in selected],
            [y for _, y in selected],
            s=size,
            color=colour,
            alpha=0.6,
            linewidths=0,
            zorder=2 + is_over,
        )
    axes.set(xlim=limits, ylim=limits, xlabel="log-likelihood in A, nats", ylabel="in B, nats")
    return to_png(figure, axes, theme)


def histogram(report: TaskReport, theme: Theme) -> bytes:
    """Plot the distribution of the differences B - A, in nats, as a PNG.

    Args:
        report: A task with points.
        theme: The colours.
    """
    figure, axes = new_figure(theme)
    differences = [y - x for x, y in report.points]
    bound = max(map(abs, differences)) or 1e-9  # All differences are 0: one bar in the middle.
    axes.hist(differences, bins=_BINS, range=(-bound, bound), color=theme.points)
    axes.set_yscale("symlog", linthresh=1)
    axes.set(xlabel="B - A, nats", ylabel="responses", xlim=(-bound * 1.05, bound * 1.05), ylim=(0, None))
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
    axes.xaxis.get_offset_text().set_color(theme.text)
    return to_png(figure, axes, theme)


def curve(steps: Sequence[int], values: Sequence[float], margins: Sequence[float], name: str, theme: Theme) -> bytes:
    """Plot a metric over the steps of a run with a confidence band, as a PNG.

    Args:
        steps: The steps, ascending.
        values: The value at each step, finite.
        margins: Half of the height of the band at each step; 0 for none.
        name: The metric.
        theme: The colours.
    """
    figure, axes = new_figure(theme)
    low, high = ([value + sign * margin for value, margin in zip(values, margins, strict=True)] for sign in (-1, 1))
    axes.fill_between(steps, low, high, color=theme.points, alpha=0.2, linewidth=0)
    axes.plot(steps, values, color=theme.points, linewidth=1.5, marker="o", markersize=3.5)
    axes.set(xlabel="step", ylabel=name)
    axes.margins(x=0.02)
    return to_png(figure, axes, theme)


def new_figure(theme: Theme) -> tuple[Figure, Axes]:
    """Return an empty plot in the colours of a theme."""
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, facecolor=theme.background, layout="constrained")
    return figure, figure.subplots()


def to_png(figure: Figure, axes: Axes, theme: Theme) -> bytes:
    """Return a plot as a PNG, with its axes in the colours of the theme."""
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

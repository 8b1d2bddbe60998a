"""What a run has cost, for results and for people."""

from __future__ import annotations

from typing import Any

from birdie_zmq.types import RunStatistics


def as_record(report: RunStatistics) -> dict[str, Any]:
    """The report as results keep it; shares are of 1, seconds as they say."""
    return {
        "requests": report.requests,
        "steps": report.steps,
        "tokens_requested": report.tokens_requested,
        "tokens_distinct": report.tokens_distinct,
        "tokens_computed": report.tokens_computed,
        "tokens_generated": report.tokens_generated,
        "tokens_thrown_away": report.tokens_thrown_away,
        "padding_share": report.tokens_padding / max(1, report.tokens_computed),
        "tokens_per_second": report.tokens_computed / report.step_seconds if report.step_seconds else 0.0,
        "idle_share": report.idle_seconds / (report.idle_seconds + report.step_seconds) if report.step_seconds else 0.0,
        "shapes": [list(shape) for shape in report.shapes],
        "shape_bound": report.shape_bound,
        "seconds": report.step_seconds,
        "compile_seconds": report.compile_seconds,
        "states_evicted": report.states_evicted,
    }


def as_text(report: RunStatistics) -> str:
    """The report in one line."""
    record = as_record(report)
    asked = f"{record['tokens_requested']:,} tokens asked"
    if report.tokens_distinct:
        asked += f" ({report.tokens_distinct:,} distinct to be scored)"
    if report.tokens_generated:
        share = report.tokens_thrown_away / (report.tokens_generated + report.tokens_thrown_away)
        asked += f", {report.tokens_generated:,} generated ({share:.0%} of what was decoded was thrown away)"
    return (
        f"{report.requests:,} requests, {asked}, {report.tokens_computed:,} computed in {report.steps:,} steps of "
        f"{len(report.shapes)} shapes ({record['padding_share']:.0%} padding): {report.step_seconds:.1f} s, "
        f"{record['tokens_per_second']:,.0f} tokens a second, device idle {record['idle_share']:.0%}, and "
        f"{report.compile_seconds:.1f} s of compiling"
    )

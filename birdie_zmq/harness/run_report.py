"""Formats a model and the statistics of a run: records for the results file and a line for the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.types import ModelDescription, RunStatistics


def model_record(description: ModelDescription, model_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies a model and its computation, as the results file stores it.

    Args:
        description: The loaded model.
        model_args: The arguments that were forwarded to the user module.
    """
    return {
        "model_tag": description.model.tag,
        "model_keywords": dict(model_args),
        "model_identity": description.identity,
        "model_api": description.api,
        "model_api_sha256": description.api_sha256,
        "model_num_parameters": description.num_parameters,
        "model_dtype": description.dtype,
        "model_vocab_size": description.vocab_size,
        "model_max_length": description.max_length,
        "model_devices": description.devices,
        "model_engine": description.engine,
        "model_versions": description.versions,
    }


def statistics_record(report: RunStatistics) -> dict[str, Any]:
    """Return the statistics as the results file stores them; shares are between 0 and 1, times in seconds.

    ``seconds``, ``compile_seconds`` and ``idle_seconds`` add up to the time in which the process had requests.
    ``idle_share`` is the share of idle time in the first and the last.
    """
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
        "idle_share": report.idle_seconds / working if (working := report.idle_seconds + report.step_seconds) else 0.0,
        "shapes": [list(shape) for shape in report.shapes],
        "shape_bound": report.shape_bound,
        "seconds": report.step_seconds,
        "compile_seconds": report.compile_seconds,
        "idle_seconds": report.idle_seconds,
        "tokenizer_seconds": report.tokenizer_seconds,
        "states_evicted": report.states_evicted,
    }


def format_statistics(report: RunStatistics) -> str:
    """Return the statistics in one line."""
    record = statistics_record(report)
    tokens = f"{record['tokens_requested']:,} tokens requested"
    if report.tokens_distinct:
        tokens += f" ({report.tokens_distinct:,} distinct tokens to score)"
    if report.tokens_generated:
        share = report.tokens_thrown_away / (report.tokens_generated + report.tokens_thrown_away)
        tokens += f", {report.tokens_generated:,} generated ({share:.0%} of decoded tokens discarded)"
    return (
        f"{report.requests:,} requests, {tokens}, {report.tokens_computed:,} computed in {report.steps:,} steps of "
        f"{len(report.shapes)} shapes ({record['padding_share']:.0%} padding): {report.step_seconds:.1f} s, "
        f"{record['tokens_per_second']:,.0f} tokens/s, device idle {record['idle_share']:.0%}, "
        f"{report.compile_seconds:.1f} s of compilation"
    )

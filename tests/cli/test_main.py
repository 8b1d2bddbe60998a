"""The arguments of the commands."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from birdie_zmq.cli import lm_eval
from birdie_zmq.cli import main as cli


def test_demo_passes_lm_eval_options_on_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[str] = []

    def run(arguments: Sequence[str] | None = None) -> int:
        received.extend(arguments or ())
        return 0

    monkeypatch.setattr(lm_eval, "main", run)
    options = ["--tasks", "demo_choice", "--limit", "4", "--log_samples", "--output_path", "there"]

    assert cli.main(["demo", *options]) == 0
    assert received[:4] == ["--model", "birdie_zmq", "--model_args", "model_tag=demo"]
    assert received[-len(options) :] == options

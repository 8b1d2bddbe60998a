"""What the commands make of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from birdie_zmq.cli import lm_eval
from birdie_zmq.cli import main as cli


def test_options_of_lm_eval_reach_it_from_the_demo_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def run(arguments: Sequence[str] | None = None) -> int:
        seen.extend(arguments or ())
        return 0

    monkeypatch.setattr(lm_eval, "main", run)
    further = ["--tasks", "demo_choice", "--limit", "4", "--log_samples", "--output_path", "there"]

    assert cli.main(["demo", *further]) == 0
    assert seen[:4] == ["--model", "birdie_zmq", "--model_args", "model_tag=demo"]
    assert seen[-len(further) :] == further

"""Experiment trackers: TensorBoard with its real package, and lm_eval's loggers by their interface."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lm_eval.loggers
import pytest

from birdie_zmq.errors import UsageError
from birdie_zmq.tools.watch.core import Sighting
from birdie_zmq.tools.watch.evaluation import Evaluated
from birdie_zmq.tools.watch.results import Measured, metrics_of
from birdie_zmq.tools.watch.trackers import open_trackers

RESULTS = {"results": {"choice": {"alias": "choice", "acc,none": 0.5, "acc_stderr,none": 0.125}}}


def evaluated(step: int) -> Evaluated:
    return Evaluated(RESULTS, Measured(metrics_of(step, RESULTS["results"]), {}))


def sighting(step: int) -> Sighting:
    return Sighting(step, f"/run/step_{step}", None, "")


def config(**options: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"wandb_args": {}, "wandb_config_args": {}, "trackio_args": {}, **options})


def test_tensorboard_gets_each_metric_at_its_step(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    with contextlib.closing(open_trackers(config(), tmp_path)) as trackers:
        for step in (10, 20):
            trackers.recorded(sighting(step), evaluated(step))
        trackers.recorded(sighting(30), None)

    (file,) = tmp_path.iterdir()
    found = [
        (v.tag, event.step, v.simple_value)
        for event in map(Event.FromString, records(file))
        for v in event.summary.value
    ]
    assert found == [
        (tag, step, value) for step in (10, 20) for tag, value in (("choice/acc", 0.5), ("choice/acc_stderr", 0.125))
    ]


def records(file: Path) -> list[bytes]:
    """Return the records of an event file: a length of eight bytes, its checksum, the record and its checksum."""
    content, found = file.read_bytes(), []
    while content:
        length = int.from_bytes(content[:8], "little")
        found.append(content[12 : 12 + length])
        content = content[16 + length :]
    return found


class FakeTrackio(ModuleType):
    """The package trackio, which is large, as far as lm_eval's logger calls it."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.calls: list[Any] = []
        self.config: dict[str, Any] = {}

    def init(self, **arguments: Any) -> None:
        self.calls.append(arguments)

    def log(self, values: dict[str, float], step: int) -> None:
        if step == 20:
            raise ConnectionError("no route to the server")
        self.calls.append((step, values))

    def finish(self) -> None:
        self.calls.append("finish")


@pytest.mark.skipif(not hasattr(lm_eval.loggers, "TrackioLogger"), reason="lm_eval 0.5 has no logger for Trackio")
def test_lm_eval_logger_gets_all_steps_in_one_run_and_its_errors_end_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trackio = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setattr("birdie_zmq.tools.watch.trackers._check_installed", lambda *_: None)

    with contextlib.closing(open_trackers(config(trackio_args={"project": "mine"}), None)) as trackers:
        for step in (10, 20, 30):
            trackers.recorded(sighting(step), evaluated(step))

    values = {"choice/acc": 0.5, "choice/acc_stderr": 0.125}
    assert trackio.calls == [{"project": "mine"}, (10, values), (30, values), "finish"]
    assert "step 20 is not logged to TrackioLogger: no route to the server" in caplog.text


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    with pytest.raises(UsageError, match="--tensorboard needs the package tensorboardX; run: pip install tensorboardX"):
        open_trackers(config(), tmp_path)
    with pytest.raises(UsageError, match="--wandb_args needs the package wandb"):
        open_trackers(config(wandb_args={"project": "mine"}), None)

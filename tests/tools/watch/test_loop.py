"""What the loop of a watch does with the end of an evaluation; real evaluations are in tests/integration/test_watch.py."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from birdie_zmq.errors import BirdieError, EngineError, ModelLoadError, WorkerUnavailable
from birdie_zmq.tools.watch.core import Sighting, WatchCore, WatchPolicy
from birdie_zmq.tools.watch.evaluation import Evaluated, Evaluation
from birdie_zmq.tools.watch.loop import Watch, follow
from birdie_zmq.tools.watch.results import Measured, Metric, ResultsFile
from birdie_zmq.tools.watch.scanning import Scanner
from tests.models.test_completeness import write_checkpoint


class Scripted:
    """An evaluation that calls a function for each checkpoint: nothing real fails at a given moment."""

    def __init__(self, script: Callable[[Path], None]) -> None:
        self.script = script
        self.steps: list[int] = []
        self.forgotten = 0

    def evaluate(self, sighting: Sighting) -> Evaluated:
        self.steps.append(sighting.step)
        self.script(Path(sighting.path))
        metric = Metric(sighting.step, "task", "acc", "none", 1.0, None)
        return Evaluated({}, Measured([metric], {}))

    def forget_answers(self) -> None:
        self.forgotten += 1


@pytest.fixture
def results(tmp_path: Path) -> Iterator[ResultsFile]:
    with contextlib.closing(ResultsFile(tmp_path / "out", {})) as opened:
        yield opened


def watch(tmp_path: Path, results: ResultsFile, script: Callable[[Path], None]) -> tuple[str, Scripted]:
    """Follow the checkpoints of a folder until none is left."""
    scripted = Scripted(script)
    core = WatchCore(WatchPolicy(once=True, settle_s=1e-9), results.outcomes)
    scanner = Scanner(f"{tmp_path}/run/*")
    parts = Watch(core, scanner, cast(Evaluation, scripted), results, tmp_path / "stop", 0.0)
    return follow(parts, [], sleep=lambda _: None), scripted


def fail(error: BirdieError) -> Any:
    raise error


def test_each_checkpoint_is_evaluated_once_and_its_answers_are_forgotten(tmp_path: Path, results: ResultsFile) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path / "run" / f"step_{step}")

    reason, scripted = watch(tmp_path, results, lambda _: None)

    assert (reason, scripted.steps, scripted.forgotten) == ("no complete checkpoint is left", [1, 2], 2)
    assert [metric.step for metric in results.metrics] == [1, 2]


def test_damaged_checkpoint_is_recorded_as_failed_and_the_watch_goes_on(tmp_path: Path, results: ResultsFile) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path / "run" / f"step_{step}")

    watch(tmp_path, results, lambda path: fail(ModelLoadError("damaged")) if path.name == "step_1" else None)

    assert {step: outcome.status for step, outcome in results.outcomes.items()} == {1: "failed", 2: "evaluated"}
    assert '"error": "damaged"' in results.path.read_text()


def test_checkpoint_deleted_while_it_is_read_is_recorded_as_deleted(tmp_path: Path, results: ResultsFile) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path / "run" / f"step_{step}")

    def delete(path: Path) -> None:
        if path.name == "step_1":
            shutil.rmtree(path)
            raise ModelLoadError(f"there is no config.json in {path}")

    watch(tmp_path, results, delete)

    assert {step: outcome.status for step, outcome in results.outcomes.items()} == {1: "deleted", 2: "evaluated"}


def test_checkpoint_written_while_it_is_read_is_evaluated_again(tmp_path: Path, results: ResultsFile) -> None:
    write_checkpoint(tmp_path / "run" / "step_1")
    written: list[Path] = []

    def write(path: Path) -> None:
        if not written:
            written.append(path)
            (path / "tokenizer.json").write_text("{}")
            raise ModelLoadError("the files have changed")

    _, scripted = watch(tmp_path, results, write)

    assert scripted.steps == [1, 1]
    assert results.outcomes[1].status == "evaluated"


@pytest.mark.parametrize("error", [WorkerUnavailable("no worker"), EngineError("no such engine")])
def test_fault_of_no_checkpoint_ends_the_watch(tmp_path: Path, results: ResultsFile, error: BirdieError) -> None:
    write_checkpoint(tmp_path / "run" / "step_1")

    with pytest.raises(type(error)):
        watch(tmp_path, results, lambda _: fail(error))
    assert results.outcomes == {}

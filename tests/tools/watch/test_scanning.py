"""Which paths are checkpoints, and their steps."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from birdie_zmq.errors import UsageError
from birdie_zmq.tools.watch.scanning import STEP_PATTERN, Scanner, state_of


def steps(pattern: str, step_pattern: str = STEP_PATTERN) -> dict[str, int]:
    """Return the steps of the checkpoints that match a pattern, by their names."""
    sightings, _ = Scanner(pattern, step_pattern).scan()
    return {Path(sighting.path).name: sighting.step for sighting in sightings}


def test_steps_are_read_from_usual_names(tmp_path: Path) -> None:
    names = ("step_10", "checkpoint-20", "global_step30", "iter_0000040", "50", "epoch=60", "run-70", "ckpt_80")
    for name in names:
        (tmp_path / name).mkdir()
    for name in (
        "epoch_90.weights.h5",
        "100.weights.h5",
        "step-110.gguf",
        "epoch_1_00000.weights.h5",
        "120-1.5.weights.h5",
    ):
        (tmp_path / name).write_bytes(b"")

    assert sorted(steps(f"{tmp_path}/*").values()) == list(range(10, 120, 10))


def test_step_may_be_in_a_directory_above_but_not_above_the_pattern(tmp_path: Path) -> None:
    run = tmp_path / "2024"
    (run / "step_5" / "hf").mkdir(parents=True)
    (run / "final").mkdir()

    assert steps(f"{run}/step_*/hf") == {"hf": 5}
    assert Scanner(f"{run}/*").scan()[1] == [str(run / "final")]


def test_step_pattern_finds_the_step_in_other_names(tmp_path: Path) -> None:
    (tmp_path / "llama-3-at-70-ema").mkdir()

    assert steps(f"{tmp_path}/*") == {}
    assert steps(f"{tmp_path}/*", step_pattern=r"at-(\d+)") == {"llama-3-at-70-ema": 70}


@pytest.mark.parametrize("pattern", ["(", r"step_\d+"])
def test_bad_step_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="--step-pattern"):
        Scanner("*", pattern)


def test_temporary_names_are_left_out(tmp_path: Path) -> None:
    for name in ("tmp-checkpoint-1", "step_2.tmp", "3.orbax-checkpoint-tmp-17", ".step_4"):
        (tmp_path / name).mkdir()

    assert Scanner(f"{tmp_path}/*").scan() == ([], [])


def test_two_checkpoints_of_one_step_are_refused(tmp_path: Path) -> None:
    for run in ("a", "b"):
        (tmp_path / run / "step_1").mkdir(parents=True)

    with pytest.raises(UsageError, match=r"a/step_1 and .*b/step_1 both have the step 1; watch one run at a time"):
        Scanner(f"{tmp_path}/*/step_*").scan()


def test_state_changes_with_every_file(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "0").write_bytes(b"abc")
    states = [state_of(tmp_path)]
    os.utime(tmp_path / "d" / "0", ns=(1, 1))
    states.append(state_of(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    states.append(state_of(tmp_path))
    shutil.rmtree(tmp_path / "d")
    states.append(state_of(tmp_path))

    assert len(set(states)) == len(states)

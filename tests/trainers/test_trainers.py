"""Checkpoints that trainers save with their own code give the scores of the trainers' own forward pass.

A program in the environment of each trainer saves small random models and writes its logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from birdie_zmq.models import load_model
from birdie_zmq.models.completeness import missing_part
from birdie_zmq.models.native.keras_files import KERAS_WEIGHTS
from tests.trainers.environments import TRAINERS, run_in_environment
from tests.trainers.saving import TOKENS

pytestmark = [pytest.mark.trainers, pytest.mark.timeout(3000)]

TOLERANCE = 3e-5
"""The largest difference of a log-probability."""

ROUNDED_TOLERANCE = 5e-2
"""The same for EasyDeL's forward pass as it is, which rounds the tables of cos and sin to bfloat16."""


@pytest.mark.parametrize("name", TRAINERS)
def test_scores_are_those_of_the_trainers_own_forward_pass(name: str, tmp_path: Path) -> None:
    done = run_in_environment(name, tmp_path, "-m", f"trainers.save_{name}", str(tmp_path / "models"))

    models = sorted((tmp_path / "models").glob("*"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert models, done.stderr[-4000:]
    failures = {path.name: (path / "failure.txt").read_text() for path in models if (path / "failure.txt").is_file()}
    assert failures == {}
    checkpoint = TRAINERS[name].checkpoint
    differences = {path.name: difference(path, checkpoint, "logits.npy") for path in models}
    exported = {
        path.name: difference(path, "exported", "logits.npy") for path in models if (path / "exported").is_dir()
    }
    rounded = {
        path.name: difference(path, checkpoint, "rounded.npy") for path in models if (path / "rounded.npy").is_file()
    }
    sharded = {path.name: difference(path, checkpoint, "logits.npy", eight_devices()) for path in models}
    print(name, differences, f"{exported=} {rounded=} {sharded=}")  # noqa: T201 - the figures of the documentation
    assert max(differences.values()) < TOLERANCE, differences
    assert max(sharded.values()) < TOLERANCE, sharded
    assert max(exported.values(), default=0.0) < TOLERANCE, exported
    assert max(rounded.values(), default=0.0) < ROUNDED_TOLERANCE, rounded


def eight_devices() -> Mesh:
    """Return a mesh of eight virtual devices, which tox -e trainers sets by XLA_FLAGS."""
    if jax.device_count() < 8:
        pytest.fail("set XLA_FLAGS=--xla_force_host_platform_device_count=8, as tox -e trainers does")
    return Mesh(np.asarray(jax.devices()[:8]).reshape(4, 2), ("data", "model"))


def difference(folder: Path, checkpoint: str, logits: str, mesh: Mesh | None = None) -> float:
    """Return the largest difference of a log-probability from the trainer's, with the model on a mesh if there is one."""
    has_config = (folder / "config").is_dir() and checkpoint != "exported"
    described: dict[str, Any] = {"config": str(folder / "config")} if has_config else {}
    path = next(each for each in (folder / checkpoint, folder / f"{checkpoint}{KERAS_WEIGHTS}") if each.exists())
    assert missing_part(path) is None, path
    model = load_model(str(path), dtype="float32", mesh=mesh, **described)
    assert model.hidden is not None
    assert model.unembed is not None
    found = model.unembed(model.params, model.hidden(model.params, TOKENS))
    expected = np.load(folder / logits)
    assert np.abs(expected).max() > 1
    return float(np.abs(np.asarray(jax.nn.log_softmax(found) - jax.nn.log_softmax(expected))).max())

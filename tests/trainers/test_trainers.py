"""Checkpoints that trainers save with their own code give the scores of the trainers' own forward pass.

Each trainer needs other versions of jax and transformers than birdie-zmq, so it has an environment of its own, in which a
program saves small random models and writes its logits. ``BIRDIE_TRAINERS`` names a folder in which these environments
stay.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from birdie_zmq.models import load_model
from tests.trainers.saving import TOKENS

pytestmark = [pytest.mark.trainers, pytest.mark.timeout(3000)]

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Trainer:
    """A trainer.

    Attributes:
        packages: What pip installs, in versions that work together.
        checkpoint: Where its program saves the checkpoint, in the folder of a model.
        tolerance: The largest difference of a log-probability.
        python: The version of Python that it needs; None for the running one.
    """

    packages: tuple[str, ...]
    checkpoint: str = "checkpoint"
    tolerance: float = 3e-5
    python: str | None = None


_MAXTEXT_NEEDS = (
    *("aqtp", "cloud-accelerator-diagnostics", "datasets", "drjax", "flax", "google-cloud-mldiagnostics"),
    *("google-cloud-storage", "grain", "jax", "jinja2", "jsonlines", "ml-collections", "ml-goodput-measurement"),
    *(
        "omegaconf",
        "orbax-checkpoint",
        "pathwaysutils",
        "pillow",
        "psutil",
        "pydantic",
        "qwix",
        "sentencepiece",
        "sympy",
    ),
    *("tensorboardx", "tiktoken", "tokamax", "transformers"),
)
_GEMMA_NEEDS = (
    "flax<0.12.5",
    "jax==0.8.2",
    "jaxlib==0.8.2",
    "kauldron==1.3.0",
    "sentencepiece<0.2.2",
    "typeguard==4.4.2",
)

TRAINERS = {
    "maxtext": Trainer(("maxtext==0.2.5", *_MAXTEXT_NEEDS), "checkpoints/3", python="3.12"),
    "gemma": Trainer(("gemma==3.3.0", *_GEMMA_NEEDS)),
    "tunix": Trainer(("google-tunix==0.1.7",), "checkpoints/2"),
    "levanter": Trainer(("marin-levanter==0.2.20.dev202606180959", "gitpython")),
    # Rounded to bfloat16 in its attention: less than 1e-6 at the first position, and as much at all others.
    "easydel": Trainer(("easydel==0.3.0", "pillow", "torch"), tolerance=5e-2),
    "keras": Trainer(("keras-hub==0.32.0", "jax==0.10.2")),
}


def python_of(name: str, trainer: Trainer, folder: Path) -> Path:
    """Return the Python of a trainer's environment, which is made if necessary."""
    python = folder / name / "bin" / "python"
    if python.is_file():
        return python
    found = sys.executable if trainer.python is None else shutil.which(f"python{trainer.python}")
    if found is None:
        pytest.skip(f"{name} needs Python {trainer.python}, and there is no python{trainer.python}")
    subprocess.run([found, "-m", "venv", str(folder / name)], check=True, timeout=300)
    subprocess.run([str(python), "-m", "pip", "install", "--no-compile", *trainer.packages], check=True, timeout=1800)
    return python


@pytest.mark.parametrize("name", TRAINERS)
def test_scores_are_those_of_the_trainers_own_forward_pass(name: str, tmp_path: Path) -> None:
    trainer = TRAINERS[name]
    python = python_of(name, trainer, Path(os.environ.get("BIRDIE_TRAINERS", tmp_path / "environments")))
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "PYTHONPATH")}
    environment |= {"JAX_PLATFORMS": "cpu", "DECOUPLE_GCLOUD": "TRUE", "CUDA_VISIBLE_DEVICES": ""}
    program = [str(python), "-m", f"trainers.save_{name}", str(tmp_path / "models")]
    # From a copy: packages of trainers install a package called tests, and tests/torch would hide torch.
    shutil.copytree(FOLDER, tmp_path / "trainers")
    done = subprocess.run(
        program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=2400, check=False
    )
    models = sorted((tmp_path / "models").glob("*"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert models, done.stderr[-4000:]
    failures = {path.name: (path / "failure.txt").read_text() for path in models if (path / "failure.txt").is_file()}
    assert failures == {}
    differences = {path.name: difference(path, trainer.checkpoint) for path in models}
    print(name, differences)  # noqa: T201 - the figures of the documentation
    assert max(differences.values()) < trainer.tolerance, differences


def difference(folder: Path, checkpoint: str) -> float:
    """Return the largest difference of a log-probability from the trainer's."""
    described: dict[str, Any] = {"config": str(folder / "config")} if (folder / "config").is_dir() else {}
    model = load_model(str(folder / checkpoint), dtype="float32", **described)
    assert model.hidden is not None
    assert model.unembed is not None
    logits = model.unembed(model.params, model.hidden(model.params, TOKENS))
    expected = np.load(folder / "logits.npy")
    assert np.abs(expected).max() > 1
    return float(np.abs(np.asarray(jax.nn.log_softmax(logits) - jax.nn.log_softmax(expected))).max())

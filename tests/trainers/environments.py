"""The environments of the trainers, which need other versions of jax and transformers than birdie-zmq.

``BIRDIE_TRAINERS`` names a folder in which the environments stay.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT


@dataclass(frozen=True)
class Trainer:
    """A trainer.

    Attributes:
        packages: What pip installs, in versions that work together.
        checkpoint: Where its program saves the checkpoint, in the folder of a model.
        python: The version of Python that it needs; None for the running one.
    """

    packages: tuple[str, ...]
    checkpoint: str = "checkpoint"
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
    # With birdie-zmq, which evaluates in its process.
    "tunix": Trainer(("google-tunix==0.1.7", f"{ROOT}[orbax]"), "checkpoints/2"),
    "levanter": Trainer(("marin-levanter==0.2.20.dev202606180959", "gitpython")),
    "easydel": Trainer(("easydel==0.3.0", "pillow", "torch")),
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


def run_in_environment(name: str, tmp_path: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the Python of a trainer's environment in a folder, with a copy of the programs of this folder in it.

    Args:
        name: The name of the trainer.
        tmp_path: The folder.
        *command: The arguments of Python.
        **variables: More variables of the environment.
    """
    folder = Path(os.environ.get("BIRDIE_TRAINERS", tmp_path / "environments"))
    python = python_of(name, TRAINERS[name], folder)
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "PYTHONPATH")}
    environment |= {"JAX_PLATFORMS": "cpu", "DECOUPLE_GCLOUD": "TRUE", "CUDA_VISIBLE_DEVICES": "", **variables}
    # From a copy: packages of trainers install a package called tests, and tests/torch would hide torch.
    shutil.copytree(Path(__file__).resolve().parent, tmp_path / "trainers", dirs_exist_ok=True)
    return subprocess.run(
        [str(python), *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=2400,
        check=False,
    )

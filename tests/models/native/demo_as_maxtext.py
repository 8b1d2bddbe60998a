"""Writes the demo's weights as a step of a run of MaxText: ``python -m tests.models.native.demo_as_maxtext STEP…``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file

from birdie_zmq.models.resolution import BUILT_IN, DEMO
from tests.models.native.hugging_face import Tensors, nested
from tests.models.native.trainers_trees import maxtext_parameters, maxtext_settings, save_step, scanned


def write_step(step: Path, scale: float = 1.0) -> Path:
    """Write the step, and the configuration in the folder of its run.

    Args:
        step: ``RUN/checkpoints/NUMBER``.
        scale: A factor of the last norm, so that the weights of steps differ.
    """
    config, tensors = scaled_demo(scale)
    parameters = scanned(maxtext_parameters(config, tensors, "llama2"), config["num_hidden_layers"])
    save_step(step, {"params": {"params": nested(parameters)}})
    settings = maxtext_settings(config, "llama2", normalize_embedding_logits=False)
    (step.parent.parent / "config.yml").write_text(yaml.dump(settings), encoding="utf-8")
    return step


def scaled_demo(scale: float) -> tuple[dict[str, Any], Tensors]:
    """Return the configuration and the tensors of the demo, whose last norm is multiplied by a factor."""
    config = json.loads((BUILT_IN[DEMO] / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(BUILT_IN[DEMO] / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * np.float32(scale)
    return config, tensors


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        write_step(Path(argument))

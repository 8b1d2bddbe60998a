"""Writes the demo's weights as a step of a run of MaxText: ``python -m tests.models.native.demo_as_maxtext STEP``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml
from safetensors.numpy import load_file

from birdie_zmq.models.resolution import BUILT_IN, DEMO
from tests.models.native.hugging_face import nested
from tests.models.native.trainers_trees import maxtext_parameters, maxtext_settings, save_orbax, scanned


def main(step: Path) -> None:
    """Write the step, and the configuration in the folder of its run."""
    config = json.loads((BUILT_IN[DEMO] / "config.json").read_text(encoding="utf-8"))
    parameters = maxtext_parameters(config, load_file(BUILT_IN[DEMO] / "model.safetensors"), "llama2")
    save_orbax(
        step.absolute() / "items", {"params": {"params": nested(scanned(parameters, config["num_hidden_layers"]))}}
    )
    settings = maxtext_settings(config, "llama2", normalize_embedding_logits=False)
    (step.parent.parent / "config.yml").write_text(yaml.dump(settings), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

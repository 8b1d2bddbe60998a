"""End-to-end tests of ``mesh=``: the model process has the devices, and ``load_model`` gets the requested mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from birdie_zmq.errors import UsageError
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import EXAMPLES

PAIRS = [("The mill of Oldbrook", " was built"), ("The mill", " of grey stone"), ("Una", " built mill 3")]

MODEL_FILE = """
import jax
import sharded


def load_model(model_tag, **keywords):
    given = {name: type(value).__name__ for name, value in keywords.items()}
    assert given == {"size": "str", "max_length": "int", **({} if model_tag == "alone" else {"mesh": "Mesh"})}, given
    return sharded.load_model(model_tag, keywords.get("mesh"))


def load_tokenizer(model_tag, size, max_length):
    return sharded.load_tokenizer(model_tag)
"""


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a model file that checks its keyword arguments, simulate eight devices, and return the path of the file."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES), prepend=":")
    path = tmp_path / "model_file.py"
    path.write_text(MODEL_FILE, encoding="utf-8")
    return str(path)


def test_model_file_gets_the_mesh_and_scores_as_on_one_device(model_file: str) -> None:
    requests = [instance("loglikelihood", pair, 0) for pair in PAIRS]
    found = {}
    mesh_args: dict[str, dict[str, Any]] = {"alone": {}, "spread": {"mesh": "data:2/model:4"}}
    for tag, mesh in mesh_args.items():
        with BirdieZMQ(model_tag=tag, api=model_file, size="small", max_length=64, device="cpu", **mesh) as lm:
            scores = [score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)]
            found[tag] = scores, lm.get_model_info()
    np.testing.assert_allclose(found["spread"][0], found["alone"][0], rtol=0, atol=1e-4)
    assert len(found["spread"][1]["model_devices"]) == 8
    assert found["spread"][1]["model_keywords"]["mesh"] == {"data": 2, "model": 4}
    assert found["spread"][1]["model_identity"] != found["alone"][1]["model_identity"]


def test_mesh_larger_than_the_device_count_is_rejected(model_file: str) -> None:
    with pytest.raises(UsageError, match=r"needs 9 devices, and the model process sees 8 \(cpu\)"):
        BirdieZMQ(model_tag="demo", api=model_file, mesh={"data": 3, "model": 3}, device="cpu")

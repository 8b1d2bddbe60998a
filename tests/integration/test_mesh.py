"""mesh= through real processes: the model process has the devices, and load_model is given the mesh, if it was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from birdie_zmq.errors import UsageError
from harness_model import BirdieZMQ
from tests.integration.conftest import EXAMPLES

PAIRS = [("The mill of Oldbrook", " was built"), ("The mill", " of grey stone"), ("Una", " built mill 3")]

PAGE = """
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
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A page that holds what it is called with against what it should be, where there are eight devices."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES), prepend=":")
    path = tmp_path / "page.py"
    path.write_text(PAGE, encoding="utf-8")
    return str(path)


def test_a_page_is_given_the_mesh_and_scores_as_on_one_device(page: str) -> None:
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in PAIRS]
    found = {}
    words: dict[str, dict[str, Any]] = {"alone": {}, "spread": {"mesh": "data:2/model:4"}}
    for tag, mesh in words.items():
        with BirdieZMQ(model_tag=tag, api=page, size="small", max_length=64, device="cpu", **mesh) as lm:
            scores = [score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)]
            found[tag] = scores, lm.get_model_info()
    np.testing.assert_allclose(found["spread"][0], found["alone"][0], rtol=0, atol=1e-4)
    assert len(found["spread"][1]["model_devices"]) == 8
    assert found["spread"][1]["model_keywords"]["mesh"] == {"data": 2, "model": 4}
    assert found["spread"][1]["model_identity"] != found["alone"][1]["model_identity"]


def test_more_devices_than_there_are_is_an_error_at_the_prompt(page: str) -> None:
    with pytest.raises(UsageError, match=r"needs 9 devices, and the model process sees 8 \(cpu\)"):
        BirdieZMQ(model_tag="demo", api=page, mesh={"data": 3, "model": 3}, device="cpu")

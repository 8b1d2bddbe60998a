"""End-to-end tests of checkpoints on disk."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import jax
import pytest
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer

import birdie_zmq.models
from birdie_zmq.errors import ModelLoadError, UsageError
from birdie_zmq.models.config import CONFIG_FILE
from birdie_zmq.models.llama import Llama
from birdie_zmq.models.loader import load_checkpoint
from birdie_zmq.models.weights import WEIGHTS_FILE, save_checkpoint
from harness_model import BirdieZMQ
from tests.gguf_files import write_gguf

DEMO = Path(birdie_zmq.models.__file__).parent / "demo"
MODEL = Llama(vocab_size=1024, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64, max_length=128)
PAIRS = [("Where does Una live?", " Fernley"), ("Where does Una live?", " Oldbrook"), ("", "Mira has 12 plums.")]


def requests() -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(PAIRS)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "small"
    save_checkpoint(directory, MODEL, MODEL.init_params(jax.random.key(5)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, directory / name)
    return directory


def test_directory_and_gguf_file_of_one_model_score_equally(checkpoint: Path, tmp_path: Path) -> None:
    loaded_model, params = load_checkpoint(checkpoint)
    assert loaded_model == MODEL
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    file = write_gguf(tmp_path / "small.gguf", MODEL, params, tokenizer)
    with BirdieZMQ(pretrained=str(checkpoint), device="cpu") as model:
        scores = model.loglikelihood(requests(), disable_tqdm=True)
        info = model.get_model_info()
    with BirdieZMQ(model_tag=str(file), tokenizer=str(checkpoint), device="cpu") as model:
        assert model.loglikelihood(requests(), disable_tqdm=True) == scores
    assert all(score < -1 for score, _ in scores)
    assert info["model_max_length"] == MODEL.max_length
    assert info["model_dtype"] == "float32"


def test_changed_checkpoint_has_another_model_identity(checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(checkpoint, directory)
    identities = []
    for modified_at in (1_000_000_000, 2_000_000_000):
        os.utime(directory / WEIGHTS_FILE, (modified_at, modified_at))
        with BirdieZMQ(model_tag=str(directory), device="cpu") as model:
            identities.append(model.get_model_info()["model_identity"])
    assert identities[0] != identities[1]


def test_unknown_architecture_lists_the_supported_ones(checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "other"
    shutil.copytree(checkpoint, directory)
    config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8")) | {"model_type": "mamba"}
    (directory / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelLoadError, match=r"'mamba' is not known; supported: .*gpt_neox.*llama.*qwen3"):
        BirdieZMQ(model_tag=str(directory), device="cpu")


def test_log_likelihoods_are_rejected_with_thinking_enabled(checkpoint: Path) -> None:
    with (
        BirdieZMQ(model_tag=str(checkpoint), device="cpu", enable_thinking=True, think_end_token="</think>") as model,
        pytest.raises(UsageError, match="enable_thinking=True is for tasks that generate"),
    ):
        model.loglikelihood(requests(), disable_tqdm=True)

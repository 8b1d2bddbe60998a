"""Checkpoints as they lie on disk, through the whole path."""

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
from birdie_zmq.models.llama import Llama
from birdie_zmq.models.loader import load_checkpoint
from birdie_zmq.models.weights import CONFIG_FILE, WEIGHTS_FILE, save_checkpoint
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


def test_a_directory_and_a_gguf_file_of_one_model_score_alike(checkpoint: Path, tmp_path: Path) -> None:
    model_of_it, params = load_checkpoint(checkpoint)
    assert model_of_it == MODEL
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


def test_a_checkpoint_that_changed_is_another_model(checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(checkpoint, directory)
    identities = []
    for moment in (1_000_000_000, 2_000_000_000):
        os.utime(directory / WEIGHTS_FILE, (moment, moment))
        with BirdieZMQ(model_tag=str(directory), device="cpu") as model:
            identities.append(model.get_model_info()["model_identity"])
    assert identities[0] != identities[1]


def test_an_unknown_architecture_reaches_the_prompt_with_those_that_are_known(checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "other"
    shutil.copytree(checkpoint, directory)
    config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8")) | {"model_type": "mamba"}
    (directory / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelLoadError, match=r"'mamba' is not known; known are .*gpt_neox.*llama.*qwen3"):
        BirdieZMQ(model_tag=str(directory), device="cpu")


def test_a_model_that_thinks_is_not_scored(checkpoint: Path) -> None:
    with (
        BirdieZMQ(model_tag=str(checkpoint), device="cpu", enable_thinking=True, think_end_token="</think>") as model,
        pytest.raises(UsageError, match="enable_thinking=True is for tasks that generate"),
    ):
        model.loglikelihood(requests(), disable_tqdm=True)

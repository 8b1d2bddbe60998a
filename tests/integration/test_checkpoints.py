"""End-to-end tests of checkpoints on disk."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import pytest
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer

import birdie_zmq.models
from birdie_zmq.errors import ModelLoadError, UsageError
from birdie_zmq.models.config import CONFIG_FILE
from birdie_zmq.models.families.llama import plain_llama
from birdie_zmq.models.loader import load_checkpoint
from birdie_zmq.models.tensor_source import WEIGHTS_FILE
from birdie_zmq.models.weights import save_checkpoint
from harness_model import BirdieZMQ
from tests.gguf_files import write_gguf
from tests.instances import instance

DEMO = Path(birdie_zmq.models.__file__).parent / "demo"
MODEL = plain_llama(vocab_size=1024, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64, max_length=128)
PAIRS = [("Where does Una live?", " Fernley"), ("Where does Una live?", " Oldbrook"), ("", "Mira has 12 plums.")]


def requests() -> list[Instance]:
    return [instance("loglikelihood", pair, number) for number, pair in enumerate(PAIRS)]


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


def test_journal_and_results_may_lie_beside_the_weights(checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(checkpoint, directory)
    arguments: dict[str, Any] = {"model_tag": str(directory), "resume": directory / "answers.journal", "device": "cpu"}
    with BirdieZMQ(**arguments) as model:
        first = model.loglikelihood(requests()[:2], disable_tqdm=True)
    (directory / "eval").mkdir()
    (directory / "eval" / "results.json").write_text("{}")
    with BirdieZMQ(**arguments) as model:
        before = model._client.describe().process_id
        assert model.loglikelihood(requests()[:2], disable_tqdm=True) == first
        assert model.get_model_info()["model_resumed_answers"] == 2

        (directory / "notes.txt").write_text("in the middle of a run")
        os.kill(before, signal.SIGKILL)
        assert len(model.loglikelihood(requests(), disable_tqdm=True)) == 3
        assert model._client.describe().process_id != before
        assert model.get_model_info()["model_resumed_answers"] == 4


def test_other_weights_with_equal_sizes_and_times_are_computed_again(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    directory, journal = tmp_path / "copy", tmp_path / "answers.journal"
    shutil.copytree(checkpoint, directory)
    arguments: dict[str, Any] = {"model_tag": str(directory), "resume": journal, "device": "cpu"}
    times = (directory / WEIGHTS_FILE).stat()
    with BirdieZMQ(**arguments) as model:
        first = model.loglikelihood(requests(), disable_tqdm=True)
    save_checkpoint(directory, MODEL, MODEL.init_params(jax.random.key(6)))
    os.utime(directory / WEIGHTS_FILE, ns=(times.st_atime_ns, times.st_mtime_ns))
    with BirdieZMQ(**arguments) as model:
        second = model.loglikelihood(requests(), disable_tqdm=True)
        assert model.get_model_info()["model_resumed_answers"] == 0
    assert all(abs(one - other) > 1e-3 for (one, _), (other, _) in zip(first, second, strict=True))
    assert f"{journal} has 3 answers, none of them to these requests by this model" in caplog.text


def test_unknown_architecture_lists_the_supported_ones(checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "other"
    shutil.copytree(checkpoint, directory)
    config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8")) | {"model_type": "rwkv"}
    (directory / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(
        ModelLoadError, match=r"'rwkv' is not supported by the engine jax; .*Supported: .*gpt_neox.*llama.*qwen3"
    ):
        BirdieZMQ(model_tag=str(directory), device="cpu")


def test_log_likelihoods_are_rejected_with_thinking_enabled(checkpoint: Path) -> None:
    with (
        BirdieZMQ(model_tag=str(checkpoint), device="cpu", enable_thinking=True, think_end_token="</think>") as model,
        pytest.raises(UsageError, match="enable_thinking=True is for tasks that generate"),
    ):
        model.loglikelihood(requests(), disable_tqdm=True)

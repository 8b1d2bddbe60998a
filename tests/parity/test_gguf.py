"""Scores of a GGUF file match those of lm_eval's hf backend, on the file and on the directory it was made from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from birdie_zmq.models.gguf_file import ARCHITECTURES
from birdie_zmq.models.loader import load_checkpoint
from tests.gguf_files import write_gguf
from tests.parity.checkpoints import make_checkpoint
from tests.parity.conftest import assert_same, hf, instances, ours
from tests.parity.test_families import HARD
from tests.parity.variants import VARIANTS

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_match_hf_on_the_file_and_on_its_directory(name: str, tmp_path: Path) -> None:
    # transformers assumes a head width of 128 for Qwen 3 in GGUF files, whatever the file has.
    values = VARIANTS[name].values | ({"head_dim": 128} if name == "qwen3" else {})
    variant = dataclasses.replace(VARIANTS[name], values=values)
    directory = make_checkpoint(variant, tmp_path / "model")
    model, params = load_checkpoint(directory)
    assert isinstance(model, Llama)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    file = write_gguf(tmp_path / "model" / "model.gguf", model, params, tokenizer, architecture=name)
    pairs = instances("loglikelihood", list(HARD))
    hf_file = hf(directory, gguf_file=file.name, tokenizer=str(directory)).loglikelihood(pairs, True)
    hf_directory = hf(directory).loglikelihood(pairs, True)
    with ours(file, tokenizer=str(directory)) as mine:
        mine_scores = mine.loglikelihood(pairs, True)
    assert_same("GGUF", hf_file, mine_scores, HARD)
    assert_same("GGUF", hf_directory, mine_scores, HARD)

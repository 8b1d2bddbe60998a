"""The identity of a served model: which changes make it another model."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from birdie_zmq.engine.model_api import Model
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.models import load_model, load_tokenizer
from birdie_zmq.models.llama import Llama
from birdie_zmq.models.tensor_source import WEIGHTS_FILE
from birdie_zmq.models.weights import save_checkpoint
from birdie_zmq.types import ModelSpec
from birdie_zmq.worker.engine_registry import import_engine
from birdie_zmq.worker.model_arguments import parse_arguments
from birdie_zmq.worker.model_loader import assemble
from birdie_zmq.worker.served_model import ModelOrigin

MODEL = Llama(vocab_size=3, d_model=8, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=8, max_length=16)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "m", MODEL, MODEL.init_params(jax.random.key(0)))
    Tokenizer(WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a")).save(str(tmp_path / "m" / "tokenizer.json"))
    return tmp_path / "m"


def change_weights(checkpoint: Path) -> None:
    """Write other weights with the same size and modification time."""
    status = (checkpoint / WEIGHTS_FILE).stat()
    save_checkpoint(checkpoint, MODEL, MODEL.init_params(jax.random.key(1)))
    os.utime(checkpoint / WEIGHTS_FILE, ns=(status.st_atime_ns, status.st_mtime_ns))


def identity(checkpoint: Path, *, own_model: bool = False, fingerprint: str | None = None) -> str:
    """Return the identity of a checkpoint; with `own_model`, of a model that an api.py has loaded from it."""
    spec = ModelSpec(tag="m", arguments='{"prefix_token_id": 0}')
    arguments = parse_arguments(spec)
    tokenizer = TokenizerAdapter(load_tokenizer(str(checkpoint)), prefix_token_id=arguments.prefix_token_id)
    model: Model = load_model(str(checkpoint))
    if own_model:
        model = replace(model, fingerprint=fingerprint)
    origin = ModelOrigin(spec=spec, arguments=arguments, engine=import_engine("jax"), api="api.py", api_sha256="0" * 64)
    return assemble(origin, tokenizer, model).identity


@pytest.mark.parametrize("own_model", [False, True])
def test_identity_changes_with_the_weights_and_not_with_a_readme(checkpoint: Path, own_model: bool) -> None:
    before = identity(checkpoint, own_model=own_model)
    (checkpoint / "README.md").write_text("About this model.")
    assert identity(checkpoint, own_model=own_model) == before
    change_weights(checkpoint)
    assert identity(checkpoint, own_model=own_model) != before


def test_fingerprint_of_an_own_model_stands_for_its_weights(checkpoint: Path) -> None:
    before = identity(checkpoint, own_model=True, fingerprint="step 1")
    change_weights(checkpoint)
    assert identity(checkpoint, own_model=True, fingerprint="step 1") == before
    assert identity(checkpoint, own_model=True, fingerprint="step 2") != before


def test_local_directory_and_hub_repository_with_equal_content_are_one_model(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = identity(checkpoint)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(checkpoint))
    monkeypatch.chdir(checkpoint)
    assert identity(Path("organisation/m")) == local

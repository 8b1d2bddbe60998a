"""The identity of a served model: which changes make it another model."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from birdie_zmq.engine.events import Answered
from birdie_zmq.engine.model_api import Model
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import InternalError, TokenizerError, UsageError
from birdie_zmq.models import load_model, load_tokenizer
from birdie_zmq.models.families.llama import plain_llama
from birdie_zmq.models.tensor_source import WEIGHTS_FILE
from birdie_zmq.models.weights import save_checkpoint
from birdie_zmq.protocol import messages as m
from birdie_zmq.types import LogLikelihoodWork, ModelSpec, StepLimits
from birdie_zmq.worker.engine_registry import import_engine
from birdie_zmq.worker.model_arguments import parse_arguments
from birdie_zmq.worker.model_loader import assemble, load
from birdie_zmq.worker.served_model import ModelOrigin, ServedModel

WITHOUT_BOS = """
import numpy as np

REQUEST_ARGUMENTS = ("prefix_token_id",)

class Bytes:
    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")

def load_model(model_tag, **kwargs):
    return lambda tokens: np.zeros((*tokens.shape, 256), np.float32)

def load_tokenizer(model_tag, **kwargs):
    return Bytes()
"""
"""A user module whose tokenizer has neither BOS nor EOS."""

MODEL = plain_llama(vocab_size=3, d_model=8, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=8, max_length=16)


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


# --- Other request arguments ------------------------------------------------------------------------------------------


def demo(*request_arguments: tuple[Any, str], arguments: str = "{}") -> ModelSpec:
    return ModelSpec(tag="demo", arguments=arguments, request_arguments=request_arguments)


def loaded(spec: ModelSpec, api: Path | None = None) -> ServedModel:
    config = m.WorkerConfig(engine="jax", api=None if api is None else str(api))
    return load(m.StartModel(model=spec, start_count=1, config=config), import_engine("jax"))


def scores(served: ServedModel) -> list[Any]:
    work = LogLikelihoodWork(pairs=[("", "The cat sat"), ("A dog", " ran")])
    found: dict[int, Any] = {}
    for event in served.answer(work, StepLimits(), served.evaluator.encode(work)):
        if isinstance(event, Answered):
            found.update(zip(event.indices, event.answers, strict=True))
    return [found[index][0] for index in range(len(found))]


def test_a_loaded_model_serves_other_request_arguments_as_if_it_were_loaded_with_them() -> None:
    specs = [demo(), demo(("prefix_token_id", "5")), demo(("prefix_token_id", "6"), ("seed", "2")), demo(("seed", "2"))]
    fresh = [loaded(spec) for spec in specs]
    served = loaded(demo(("prefix_token_id", "9")))
    views = [served.for_spec(spec) for spec in specs]

    assert [view.identity for view in views] == [one.identity for one in fresh]
    assert len({one.identity for one in fresh}) == 4
    assert [view.describe().model for view in views] == specs
    expected = [scores(one) for one in fresh]
    assert [scores(view) for view in views] == expected
    assert len({each[0] for each in expected}) == 3, "the prefix token changes the score of a text without context"
    assert len({each[1] for each in expected}) == 1
    assert views[0].evaluator.report.requests == served.evaluator.report.requests == 2 * len(specs)


def test_a_wrong_request_argument_is_an_error_of_its_own_run() -> None:
    served = loaded(demo())
    with pytest.raises(UsageError, match="prefix_token_id=-1"):
        served.for_spec(demo(("prefix_token_id", "-1")))
    assert served.for_spec(demo(("seed", "1"))).identity != served.identity


def test_a_tokenizer_without_bos_and_eos_needs_a_prefix_token_in_each_run(tmp_path: Path) -> None:
    api = tmp_path / "api.py"
    api.write_text(WITHOUT_BOS)
    served = loaded(demo(("prefix_token_id", "3")), api)
    assert served.for_spec(demo(("prefix_token_id", "4"))).tokenizer.prefix_token_id == 4
    with pytest.raises(TokenizerError, match="neither bos_token_id nor eos_token_id"):
        served.for_spec(demo())


def test_a_process_refuses_leases_for_another_model(tmp_path: Path) -> None:
    served = loaded(demo())
    with pytest.raises(InternalError, match="received requests for"):
        served.for_spec(demo(arguments='{"max_length": 8}'))
    api = tmp_path / "api.py"
    api.write_text(WITHOUT_BOS)
    with pytest.raises(InternalError, match="received requests for"):
        loaded(demo(("prefix_token_id", "3")), api).for_spec(demo(("prefix_token_id", "3"), ("seed", "2")))


def test_the_identity_is_that_of_the_files_that_were_loaded(checkpoint: Path) -> None:
    spec = ModelSpec(tag=str(checkpoint), request_arguments=(("prefix_token_id", "0"),))
    served, again = loaded(spec), loaded(spec)
    other = ModelSpec(tag=str(checkpoint), request_arguments=(("prefix_token_id", "1"),))
    expected = again.for_spec(other).identity
    _ = served.identity
    change_weights(checkpoint)

    assert served.for_spec(other).identity == expected

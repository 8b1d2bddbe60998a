"""Checkpoints: what is written is read back, what is damaged is named, and the shipped model knows its world."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

import birdie_zmq.models.checkpoint
from birdie_zmq.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_decoder, save_decoder
from birdie_zmq.models.decoder import DecoderConfig, Params, init_params, logits

CONFIG = DecoderConfig(
    vocab_size=20, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24, max_length=32, tied_head=False
)
TIED = dataclasses.replace(CONFIG, tied_head=True)
DEMO = Path(birdie_zmq.models.checkpoint.__file__).parent / "demo"
DAMAGED = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_decoder(tmp_path, CONFIG, init_params(CONFIG, jax.random.key(0)))
    return tmp_path


def rewrite(directory: Path, change: dict[str, NDArray[Any] | None]) -> None:
    """Replace tensors on disk; None takes one away."""
    tensors = {**load_file(directory / WEIGHTS_FILE), **change}
    save_file({k: v for k, v in tensors.items() if v is not None}, directory / WEIGHTS_FILE)


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_round_trip(tmp_path: Path, config: DecoderConfig, dtype: str) -> None:
    params = init_params(config, jax.random.key(1))
    save_decoder(tmp_path / "new", config, params, dtype)
    read_config, read_params = load_decoder(tmp_path / "new")
    assert read_config == config
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), params)
    jax.tree.map(np.testing.assert_array_equal, read_params, rounded)


def test_dtype_in_memory_is_the_callers(saved: Path) -> None:
    _, params = load_decoder(saved, "bfloat16")
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


def test_names_and_orientation_are_hugging_faces(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (8, 16)
    assert tensors["model.layers.0.mlp.down_proj.weight"].shape == (16, 24)
    assert tensors["lm_head.weight"].shape == (20, 16)
    assert len(tensors) == 9 * CONFIG.n_layers + 3


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_decoder(saved)


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "gpt2"}', "\udcff"])
def test_damaged_config(saved: Path, content: str) -> None:
    (saved / CONFIG_FILE).write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=CONFIG_FILE):
        load_decoder(saved)


@pytest.mark.parametrize("kept_bytes", [0, 5, 200, -1])
def test_truncated_weights(saved: Path, kept_bytes: int) -> None:
    path = saved / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(ValueError, match=WEIGHTS_FILE):
        load_decoder(saved)


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (None, "lacks the tensor"),
        (np.zeros((16, 24), np.float32), "has the shape"),
        (np.zeros((24, 16), np.int32), "not floating"),
    ],
)
def test_damaged_tensor_is_named(saved: Path, replacement: NDArray[Any] | None, message: str) -> None:
    rewrite(saved, {DAMAGED: replacement})
    with pytest.raises(ValueError, match=f"({DAMAGED}.*{message})|({message}.*{DAMAGED})") as caught:
        load_decoder(saved)
    assert WEIGHTS_FILE in str(caught.value)


def test_tensor_without_a_place_is_refused(saved: Path) -> None:
    """A bias that is dropped in silence would give a model that is almost right."""
    rewrite(saved, {"model.layers.0.self_attn.q_proj.bias": np.zeros(16, np.float32)})
    with pytest.raises(ValueError, match=r"q_proj\.bias"):
        load_decoder(saved)


def test_repeated_head_of_a_tied_model_is_let_pass(tmp_path: Path) -> None:
    save_decoder(tmp_path, TIED, init_params(TIED, jax.random.key(0)))
    rewrite(tmp_path, {"lm_head.weight": np.zeros((20, 16), np.float32)})
    assert load_decoder(tmp_path)[1].head is None


def test_save_refuses_what_cannot_be_stored(tmp_path: Path) -> None:
    params = init_params(CONFIG, jax.random.key(0))
    with pytest.raises(ValueError, match="int8"):
        save_decoder(tmp_path, CONFIG, params, "int8")
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        save_decoder(tmp_path, TIED, params)
    with pytest.raises(ValueError, match=r"model\.norm\.weight .* float16"):
        save_decoder(tmp_path, CONFIG, params._replace(final_norm=jnp.full((16,), 1e6)), "float16")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def demo() -> tuple[DecoderConfig, Params, Tokenizer]:
    return (*load_decoder(DEMO), Tokenizer.from_file(str(DEMO / "tokenizer.json")))


def test_demo_is_small() -> None:
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 2_000_000


@pytest.mark.parametrize("text", ["", "Mira  has 12\n\n plums.", "naïve 東京 🦔\u200d\x00\ttab ", "<|user|>Hi<|eos|>"])
def test_demo_tokenizer_round_trips_any_text(demo: tuple[DecoderConfig, Params, Tokenizer], text: str) -> None:
    config, _, tokenizer = demo
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert all(token < config.vocab_size for token in ids)


def test_demo_special_tokens(demo: tuple[DecoderConfig, Params, Tokenizer]) -> None:
    config, _, tokenizer = demo
    description = json.loads((DEMO / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert tokenizer.token_to_id(description["bos_token"]) == 1
    assert tokenizer.token_to_id(description["eos_token"]) == 2
    assert description["model_max_length"] == config.max_length
    assert tokenizer.get_vocab_size() == config.vocab_size


@pytest.mark.parametrize(
    ("context", "right", "wrong"),
    [
        ("Question: What is 4 plus 5?\nAnswer:", " 9", " 8"),
        ("Question: Where does Una live?\nAnswer:", " Fernley", " Oldbrook"),
        ("<|bos|><|user|>Question: Where does Una live?\nAnswer:<|eos|><|assistant|>", "Fernley", "Oldbrook"),
    ],
)
def test_demo_knows_its_world(
    demo: tuple[DecoderConfig, Params, Tokenizer], context: str, right: str, wrong: str
) -> None:
    config, params, tokenizer = demo

    def loglikelihood(continuation: str) -> float:
        start = len(tokenizer.encode(context).ids)
        ids = tokenizer.encode(context + continuation).ids
        log_probabilities = jax.nn.log_softmax(logits(config, params, jnp.array([ids])))[0]
        return sum(float(log_probabilities[i - 1, ids[i]]) for i in range(start, len(ids)))

    assert loglikelihood(right) > loglikelihood(wrong)
    assert loglikelihood(right) > np.log(0.5)

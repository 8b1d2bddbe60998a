"""Weights with a LoRA adapter agree with peft, and tied heads with lm_eval's hf backend, in both engines."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from birdie_zmq.errors import ModelLoadError
from birdie_zmq.models.decoder import logits
from birdie_zmq.models.loader import load_checkpoint
from tests.parity.checkpoints import make_checkpoint
from tests.parity.conftest import assert_same, hf, instances, ours
from tests.parity.test_families import HARD
from tests.parity.variants import VARIANTS

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

TOKENS = np.array([[1, 17, 300, 4, 4, 900, 2, 31]], np.int32)
TARGETS: dict[str, list[str]] = {
    "llama": ["q_proj", "o_proj", "down_proj"],
    "mistral": ["k_proj", "up_proj"],
    "qwen2_tied_window_yarn": ["q_proj", "v_proj"],
    "qwen3": ["q_proj", "gate_proj"],
    "gemma2": ["o_proj", "up_proj"],
    "gemma3": ["v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_4h_to_h"],
}


def make_adapter(base: Path, directory: Path, targets: list[str] | str, **values: Any) -> Any:
    """Save a random adapter with peft, and return the model with it."""
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=targets, task_type="CAUSAL_LM", **values)
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0.0, 0.2)
    adapted.save_pretrained(directory)
    return adapted.eval()


def torch_logits(module: Any) -> NDArray[Any]:
    import torch

    with torch.inference_mode():
        found: NDArray[Any] = module(torch.from_numpy(TOKENS).long()).logits.numpy()
    return found


def jax_logits(directory: Path, adapter: Path | None = None) -> NDArray[Any]:
    architecture, params = load_checkpoint(directory, "float32", adapter=adapter)
    return np.asarray(logits(architecture, params, jnp.asarray(TOKENS)))


def engine_torch_logits(directory: Path, adapter: Path | None = None) -> NDArray[Any]:
    from birdie_zmq.models import transformers_model

    return torch_logits(transformers_model.load_checkpoint(directory, "float32", adapter).params)


@pytest.mark.parametrize("name", TARGETS)
def test_merged_adapter_gives_the_logits_of_peft_in_both_engines(name: str, tmp_path: Path) -> None:
    base = make_checkpoint(VARIANTS[name], tmp_path / "base")
    expected = torch_logits(make_adapter(base, tmp_path / "adapter", TARGETS[name]))
    assert np.abs(expected - jax_logits(base)).max() > 0.1
    np.testing.assert_allclose(jax_logits(base, tmp_path / "adapter"), expected, atol=2e-4)
    np.testing.assert_allclose(engine_torch_logits(base, tmp_path / "adapter"), expected, atol=2e-4)


def test_adapter_beside_its_base_model_is_applied_once(tmp_path: Path) -> None:
    """Where peft is installed, transformers would apply it by itself."""
    base = make_checkpoint(VARIANTS["llama"], tmp_path / "base")
    expected = torch_logits(make_adapter(base, base, ["q_proj"]))
    np.testing.assert_allclose(jax_logits(base, base), expected, atol=2e-4)
    np.testing.assert_allclose(engine_torch_logits(base, base), expected, atol=2e-4)


def test_adapter_of_gemma3_with_vision_gives_the_logits_of_peft(tmp_path: Path) -> None:
    base = make_checkpoint(VARIANTS["gemma3_with_vision"], tmp_path / "base")
    expected = torch_logits(make_adapter(base, tmp_path / "adapter", ["q_proj", "o_proj"]))  # also in the vision tower
    np.testing.assert_allclose(jax_logits(base, tmp_path / "adapter"), expected, atol=2e-4)
    np.testing.assert_allclose(engine_torch_logits(base, tmp_path / "adapter"), expected, atol=2e-4)


def test_adapters_that_are_not_plain_are_refused_by_name_in_both_engines(tmp_path: Path) -> None:
    from birdie_zmq.models import transformers_model

    base = make_checkpoint(VARIANTS["llama"], tmp_path / "base")
    kinds: dict[str, dict[str, Any]] = {
        "use_dora": {"use_dora": True},
        "use_rslora": {"use_rslora": True},
        "lora_bias": {"lora_bias": True},
        "modules_to_save": {"modules_to_save": ["lm_head"]},
        "rank_pattern": {"rank_pattern": {"q_proj": 2}},
        "trainable_token_indices": {"trainable_token_indices": [3]},
    }
    for key, values in kinds.items():
        make_adapter(base, tmp_path / key, ["q_proj"], **values)
        with pytest.raises(ValueError, match=key):
            load_checkpoint(base, adapter=tmp_path / key)
        with pytest.raises(ModelLoadError, match=key):
            transformers_model.load_checkpoint(base, "float32", tmp_path / key)
    for module in ("embed_tokens", "lm_head"):  # peft saves their base weights too
        make_adapter(base, tmp_path / module, [module])
        with pytest.raises(ValueError, match=rf"{module}\.base_layer\.weight, which is a weight of the base model"):
            load_checkpoint(base, adapter=tmp_path / module)


def test_adapter_of_another_model_is_refused_by_the_engine_torch(tmp_path: Path) -> None:
    from birdie_zmq.models import transformers_model

    base, other = (make_checkpoint(VARIANTS[name], tmp_path / name) for name in ("llama", "gpt2"))
    make_adapter(other, tmp_path / "adapter", ["c_attn"])
    with pytest.raises(ModelLoadError, match=r"transformer\.h\.0\.attn\.c_attn, which is no linear layer"):
        transformers_model.load_checkpoint(base, "float32", tmp_path / "adapter")


def test_scores_with_peft_in_model_args_match_hf(tmp_path: Path) -> None:
    base = make_checkpoint(VARIANTS["gpt2"], tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", ["c_attn", "c_fc"])
    pairs = instances("loglikelihood", list(HARD))
    theirs = hf(base, peft=str(tmp_path / "adapter")).loglikelihood(pairs, True)
    with ours(base, peft=str(tmp_path / "adapter")) as mine:
        assert_same("LoRA", theirs, mine.loglikelihood(pairs, True), HARD)
    with ours(tmp_path / "adapter") as alone:
        assert_same("LoRA", theirs, alone.loglikelihood(pairs, True), HARD)


@pytest.mark.parametrize(("name", "head"), [("gpt2", "lm_head.weight"), ("qwen3_biases_tied", "lm_head.weight")])
def test_another_head_of_a_tied_model_is_ignored_as_by_hf_in_both_engines(
    name: str, head: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = make_checkpoint(VARIANTS[name], tmp_path / "model")
    tied = jax_logits(directory)
    tensors = load_file(directory / "model.safetensors")
    tensors[head] = np.random.default_rng(0).normal(size=(1024, 64)).astype(np.float32)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    assert json.loads((directory / "config.json").read_text())["tie_word_embeddings"]
    expected = torch_logits(hf(directory).model)
    for found in (jax_logits, engine_torch_logits):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "birdie_zmq.models"):
            np.testing.assert_allclose(found(directory), expected, atol=2e-4)
        mine = [record.message for record in caplog.records if record.name.startswith("birdie_zmq.models")]
        assert [f"the tensor {head} differs" in message for message in mine] == [True]
    np.testing.assert_allclose(tied, expected, atol=2e-4)

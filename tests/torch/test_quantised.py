"""Checkpoints whose weights a package has quantised, in the engine torch, compared with plain calls by transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.torch.backend import TorchBackend
from birdie_zmq.errors import ModelLoadError
from birdie_zmq.models.transformers_model import load_checkpoint
from tests.torch.test_architectures import MAX_LENGTH, check_scores, check_texts, prompts_of

pytestmark = [pytest.mark.torch, pytest.mark.variant, pytest.mark.filterwarnings("ignore")]


def bitsandbytes_4(directory: Path) -> Any:
    return save_quantised(
        directory,
        transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
    )


def bitsandbytes_8(directory: Path) -> Any:
    return save_quantised(directory, transformers.BitsAndBytesConfig(load_in_8bit=True))


def torchao(directory: Path) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return save_quantised(directory, transformers.TorchAoConfig(Int8WeightOnlyConfig()))


def save_quantised(directory: Path, how: Any) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, quantization_config=how, dtype=torch.float32)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory)


def compressed_tensors(directory: Path) -> None:
    from compressed_tensors import quantization
    from compressed_tensors.compressors import ModelCompressor

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    weights = quantization.QuantizationArgs(num_bits=4, strategy="channel", symmetric=True)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=weights)
    config = quantization.QuantizationConfig(
        config_groups={"all": scheme}, ignore=["lm_head"], format="pack-quantized", quantization_status="compressed"
    )
    quantization.apply_quantization_config(model, config)
    for layer in model.modules():
        if hasattr(layer, "weight_scale"):
            layer.weight_scale.data = layer.weight.data.abs().amax(1, keepdim=True) / 7
    compressor = ModelCompressor.from_pretrained_model(model, "pack-quantized")
    compressor.compress_model(model)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory)
    compressor.update_config(directory)


METHODS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "bitsandbytes, 4 bits": ("bitsandbytes", bitsandbytes_4),
    "bitsandbytes, 8 bits": ("bitsandbytes", bitsandbytes_8),
    "compressed-tensors": ("compressed_tensors", compressed_tensors),
    "torchao": ("torchao", torchao),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A small random llama, whose sizes are multiples of the blocks in which weights are quantised."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(
        vocab_size=512, num_hidden_layers=3, max_position_embeddings=MAX_LENGTH, initializer_range=0.2, **sizes
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("method", METHODS)
def test_scores_and_texts_equal_those_of_plain_calls(method: str, directory: Path) -> None:
    package, quantise = METHODS[method]
    pytest.importorskip(package, reason=f"quantised checkpoints of this method need the package {package}")
    floats = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    quantise(directory)
    plain = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = torch.arange(3, 40)[None]
    with torch.inference_mode():
        assert float((plain(tokens).logits - floats(tokens).logits).abs().max()) > 0.01  # it is quantised

    backend = TorchBackend(resolve(load_checkpoint(directory, "float32")), MAX_LENGTH)

    if method == "bitsandbytes, 8 bits":  # activations are rounded, by what else is in the batch
        check_scores(plain, [backend], rtol=0.03)
        return
    check_scores(plain, [backend])
    check_texts(plain, [backend], prompts_of(512)[1])


def test_an_adapter_is_not_merged_into_quantised_weights(directory: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes", reason="quantised checkpoints of this method need the package bitsandbytes")
    adapted = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(directory), peft.LoraConfig(target_modules=["q_proj"])
    )
    adapted.save_pretrained(tmp_path / "adapter")
    bitsandbytes_8(directory)
    with pytest.raises(ModelLoadError, match="cannot be merged into weights that are quantised by bitsandbytes"):
        load_checkpoint(directory, adapter=tmp_path / "adapter")


def test_the_error_for_a_missing_package_names_it(directory: Path) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for method, package, more in (("gptq", "gptqmodel", {"bits": 4}), ("aqlm", "aqlm", {}), ("hqq", "hqq", {})):
        path.write_text(json.dumps(config | {"quantization_config": {"quant_method": method, **more}}))
        with pytest.raises(ModelLoadError, match=rf"transformers cannot load .*quantised by {method}") as caught:
            load_checkpoint(directory)
        assert package in str(caught.value).lower()

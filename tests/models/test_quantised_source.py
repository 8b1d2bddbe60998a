"""Quantised weights are read as the values that their published formats give, and unknown formats are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from birdie_zmq.models.config_fields import UnsupportedValueError
from birdie_zmq.models.families.llama import plain_llama, to_hugging_face
from birdie_zmq.models.loader import load_checkpoint
from birdie_zmq.models.quantised_source import DequantisedSource, read_scheme
from birdie_zmq.models.tensor_source import SafetensorsFiles
from birdie_zmq.models.weights import stored_tensors
from tests import quantised_weights
from tests.quantised_weights import Tensors

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True}
Make = Callable[[np.random.Generator, int, int], tuple[Tensors, NDArray[np.float32]]]


def _gptq(**options: Any) -> Make:
    defaults = {"bits": 4, "group": 16, "order": False, "stored_offset": 1} | options
    return lambda random, outputs, inputs: quantised_weights.gptq(random, outputs, inputs, **defaults)


CASES: dict[str, tuple[dict[str, Any], Make]] = {
    "gptq of 4 bits": (GPTQ, _gptq()),
    "gptq of 8 bits, in one group": (GPTQ | {"bits": 8, "group_size": -1}, _gptq(bits=8, group=32)),
    "gptq with desc_act": (GPTQ | {"desc_act": True}, _gptq(order=True)),
    "gptq_v2, whose zeros are stored as they are": (GPTQ | {"checkpoint_format": "gptq_v2"}, _gptq(stored_offset=0)),
    "awq": (AWQ, lambda random, outputs, inputs: quantised_weights.awq(random, outputs, inputs, group=16)),
    "fp8 in blocks, the last ones smaller": (
        {"quant_method": "fp8", "weight_block_size": [24, 24], "activation_scheme": "dynamic"},
        lambda random, outputs, inputs: quantised_weights.fp8_blocks(random, outputs, inputs, block=24),
    ),
    "fp8 with one scale": ({"quant_method": "fp8"}, quantised_weights.fp8_whole),
}


def write(path: Path, tensors: Tensors) -> SafetensorsFiles:
    save_file(tensors, path)
    return SafetensorsFiles(str(path.parent), [path])


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_is_loaded_with_the_values_of_its_format(case: str, tmp_path: Path) -> None:
    quantisation, make = CASES[case]
    model = plain_llama(
        vocab_size=40, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64, max_length=64, tied_head=False
    )
    random = np.random.default_rng(0)
    stored: Tensors = {}
    expected: dict[str, NDArray[np.float32]] = {}
    for name, slot in model.weight_map().tensors():
        if name.startswith("model.layers") and len(slot.spec.shape) == 2:
            parts, expected[name] = make(random, *slot.spec.shape)
            stored |= {f"{name.removesuffix('.weight')}.{end}": part for end, part in parts.items()}
        else:  # norms, the embedding and the head are not quantised
            expected[name] = random.standard_normal(slot.spec.shape).astype(np.float32)
            stored[name] = expected[name].astype(ml_dtypes.bfloat16)
            expected[name] = stored[name].astype(np.float32)
    write(tmp_path / "model.safetensors", stored)
    config = to_hugging_face(model) | {"dtype": "float16", "quantization_config": quantisation}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    architecture, params = load_checkpoint(tmp_path)
    found = stored_tensors(architecture.weight_map(), params)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_experts_of_mxfp4_are_exact_in_bfloat16(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors, values = quantised_weights.mxfp4(np.random.default_rng(0), experts=3, outputs=6, groups=2)
    files = write(tmp_path / "model.safetensors", {f"{name}_{end}": part for end, part in tensors.items()})
    source = DequantisedSource(files, read_scheme({"quant_method": "mxfp4"}))
    assert {key: (header.shape, header.floating) for key, header in source.headers.items()} == {
        name: ((3, 64, 6), True)
    }
    read = dict(source.read())[name]
    assert read().dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read().astype(np.float32), values)
    part = (slice(1, 2), slice(None), slice(0, 3))
    np.testing.assert_array_equal(read(part).astype(np.float32), values[part])


def test_the_groups_of_gptq_follow_from_their_size_if_the_file_does_not_name_them(tmp_path: Path) -> None:
    tensors, values = _gptq()(np.random.default_rng(0), 8, 32)
    del tensors["g_idx"]
    files = write(tmp_path / "model.safetensors", {f"q.{end}": part for end, part in tensors.items()})
    source = DequantisedSource(files, read_scheme(GPTQ))
    np.testing.assert_array_equal(dict(source.read())["q.weight"](), values)


@pytest.mark.parametrize(
    ("quantisation", "message"),
    [
        (
            {"quant_method": "bitsandbytes"},
            "weights quantised by 'bitsandbytes' are not supported, only by awq, fp8, gptq",
        ),
        ({"quant_method": "compressed-tensors"}, "weights quantised by 'compressed-tensors' are not supported"),
        (GPTQ | {"bits": 3}, "bits=3 is not supported, only 4 or 8"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format='marlin' is not supported"),
        (GPTQ | {"is_marlin_format": True}, "is_marlin_format=True is not supported"),
        (AWQ | {"version": "gemv"}, "version='gemv' of AWQ is not supported, only 'gemm'"),
        (AWQ | {"zero_point": False}, "zero_point=False is not supported"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt='e5m2' is not supported"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "activation_scheme='static' is not supported"),
    ],
)
def test_another_format_is_refused_by_name(quantisation: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedValueError, match=message):
        read_scheme(quantisation)


def test_a_weight_without_one_of_its_tensors_is_refused(tmp_path: Path) -> None:
    tensors, _ = _gptq()(np.random.default_rng(0), 8, 32)
    files = write(tmp_path / "model.safetensors", {"q.qweight": tensors["qweight"], "q.scales": tensors["scales"]})
    with pytest.raises(ValueError, match=r"has the quantised tensor q\.qweight and lacks q\.qzeros"):
        DequantisedSource(files, read_scheme(GPTQ))
    tensors, _ = quantised_weights.fp8_whole(np.random.default_rng(0), 4, 4)
    files = write(tmp_path / "other.safetensors", {"q.weight": tensors["weight"]})
    with pytest.raises(ValueError, match=r"has the quantised tensor q\.weight and lacks q\.weight_scale_inv"):
        DequantisedSource(files, read_scheme({"quant_method": "fp8"}))

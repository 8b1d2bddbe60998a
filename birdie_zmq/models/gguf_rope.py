"""Rotary positions and attention windows of a GGUF file, as keys of a Hugging Face configuration."""

from __future__ import annotations

import math
from typing import Any

from birdie_zmq.models.families.common import FULL, WINDOWED
from birdie_zmq.models.gguf_metadata import GgufMetadata

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor with the divisors of the RoPE frequencies, into which llama.cpp converts Llama 3.1's scaling."""

SHORT_FACTORS, LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
"""The tensors with LongRoPE's divisors, for texts within the original length and for longer ones."""

FACTOR_TENSORS = (ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS)
"""Tensors that belong to the configuration, not to the weights."""

_DEFAULT_THETA = 10_000.0


def rope_parameters(file: GgufMetadata, head_dim: int, *, partial: bool = False) -> dict[str, Any]:
    """Return ``rope_parameters`` of the configuration.

    Args:
        file: The file.
        head_dim: Width of a head.
        partial: Whether the family may rotate a part of each head.

    Raises:
        ValueError: The scaling is not supported, its factors are damaged, or the file rotates a part of each head and
            the family does not.
    """
    parameters: dict[str, Any] = {"rope_theta": file.number("rope.freq_base", _DEFAULT_THETA)}
    rotated = file.integer("rope.dimension_count", head_dim)
    if partial:
        parameters["partial_rotary_factor"] = _share(rotated, head_dim)
    elif rotated != head_dim:
        raise ValueError(f"{file.path}: heads of {head_dim} dimensions with {rotated} rotated are not supported")
    return parameters | _scaling(file, rotated)


def layer_types(file: GgufMetadata, period: int) -> list[str]:
    """Return ``layer_types`` of the configuration of a model with windows.

    Args:
        file: The file. Its key for the pattern is a list with one flag for each layer, a period, or missing.
        period: llama.cpp's period of the architecture: the last layer of each has full attention.
    """
    layers, key = file.integer("block_count"), "attention.sliding_window_pattern"
    pattern = file.value(f"{file.architecture}.{key}", None)
    if isinstance(pattern, list):
        windowed = [bool(flag) for flag in file.items(key)]
        if len(windowed) != layers:
            raise ValueError(f"{file.path}: {file.architecture}.{key} has {len(windowed)} values for {layers} layers")
    else:
        period = file.integer(key, period)
        windowed = [period > 0 and layer % period < period - 1 for layer in range(layers)]
    return [WINDOWED if flag else FULL for flag in windowed]


def _scaling(file: GgufMetadata, rotated: int) -> dict[str, Any]:
    kind = file.text("rope.scaling.type", "none")
    tensors = [name for name in (ROPE_FACTORS, SHORT_FACTORS) if name in file.shapes]
    # Phi-3's files have the factors of LongRoPE without naming the type.
    if tensors and kind not in ("none", "longrope"):
        raise ValueError(f"{file.path}: {tensors[0]} beside RoPE scaling of the type {kind} is not supported")
    if ROPE_FACTORS in file.shapes:
        factors = _factors(file, ROPE_FACTORS, rotated)
        # They hold for a text of any length.
        limit = {"factor": 1.0, "attention_factor": 1.0, "original_max_position_embeddings": 2**31}
        return {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, **limit}
    original = file.integer("rope.scaling.original_context_length", 0)
    if SHORT_FACTORS in file.shapes:
        scaling = {
            "rope_type": "longrope",
            "short_factor": _factors(file, SHORT_FACTORS, rotated),
            "long_factor": _factors(file, LONG_FACTORS, rotated),
            "factor": file.integer("context_length") / max(original, 1),
            "original_max_position_embeddings": original,
        }
        # Without the key, the factor of the attention follows from that of the length.
        attention_factor = file.optional_number("rope.scaling.attn_factor")
        return scaling if attention_factor is None else scaling | {"attention_factor": attention_factor}
    match kind:
        case "none":
            return {"rope_type": "default"}
        case "linear":
            return {"rope_type": "linear", "factor": file.number("rope.scaling.factor")}
        case "yarn":
            return _yarn(file)
    raise ValueError(f"{file.path}: RoPE scaling of the type {kind} is not supported in GGUF files")


def _yarn(file: GgufMetadata) -> dict[str, Any]:
    scaling = {
        "rope_type": "yarn",
        "factor": file.number("rope.scaling.factor"),
        "original_max_position_embeddings": file.integer("rope.scaling.original_context_length"),
        "beta_fast": file.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": file.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    # llama.cpp's converter copies attention_factor of the Hugging Face configuration into this key.
    attention_factor = file.optional_number("rope.scaling.yarn_attn_factor")
    return scaling if attention_factor is None else scaling | {"attention_factor": attention_factor}


def _factors(file: GgufMetadata, name: str, rotated: int) -> list[float]:
    if name not in file.shapes:
        raise ValueError(f"{file.path} lacks the tensor {name}")
    factors = [float(value) for value in file.read_tensor(name).reshape(-1)]
    if len(factors) != rotated // 2 or not all(factor > 0 for factor in factors):
        raise ValueError(f"{file.path}: {name} must be {rotated // 2} numbers above 0, not {factors}")
    return factors


def _share(rotated: int, head_dim: int) -> float:
    """Return the share of a head that is rotated, such that its product with the width is not rounded down."""
    share = rotated / head_dim
    return share if int(head_dim * share) == rotated else math.nextafter(share, math.inf)

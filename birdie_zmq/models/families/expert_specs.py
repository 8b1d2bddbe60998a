"""The tensors of experts as most checkpoints name them, and which layers have experts."""

from __future__ import annotations

from collections.abc import Collection

from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.families.common import LAYER
from birdie_zmq.models.weight_map import TensorSpec, column_parallel, linear_specs, row_parallel

NAMES = ("gate_proj", "up_proj", "down_proj")
"""The names of an expert's matrices: gate, up and down."""

COUNT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")
"""The keys of the number of experts; versions of transformers differ in the one that they keep."""


def expert_specs(prefix: str, d: int, f: int, count: int, names: tuple[str, str, str] = NAMES) -> dict[str, TensorSpec]:
    """Return the matrices of experts that are separate tensors in the file.

    Args:
        prefix: Precedes the number of the expert in the file, with ``{}`` for the number of the layer.
        d: Width of the residual stream.
        f: Width of an expert.
        count: Number of experts.
        names: The names of gate, up and down in the file.
    """
    require_positive(experts=count, width_of_an_expert=f)
    gate, up, down = (f"{prefix}{{member}}.{name}.weight" for name in names)
    inwards, outwards = column_parallel(f), row_parallel(f)
    return {
        "experts_gate": TensorSpec(gate, (f, d), transposed=True, shard=inwards, members=count),
        "experts_up": TensorSpec(up, (f, d), transposed=True, shard=inwards, members=count),
        "experts_down": TensorSpec(down, (d, f), transposed=True, shard=outwards, members=count),
    }


def shared_specs(prefix: str, d: int, f: int) -> dict[str, TensorSpec]:
    """Return the matrices [d, f] of experts that every token uses, given what precedes their names in the file."""
    return {
        **linear_specs(prefix + "gate_proj", d, f, column_parallel(f), key="shared_gate"),
        **linear_specs(prefix + "up_proj", d, f, column_parallel(f), key="shared_up"),
        **linear_specs(prefix + "down_proj", f, d, row_parallel(f), key="shared_down"),
    }


def router_specs(name: str, d: int, count: int, *, bias: bool = False) -> dict[str, TensorSpec]:
    """Return the matrix [d, count] of a router, given its name in the file."""
    return linear_specs(LAYER + name, d, count, bias=bias, key="router")


def read_counts(config: ConfigReader) -> tuple[int, int]:
    """Return the number of experts, and the number of experts of a token.

    Raises:
        ValueError: One of them is missing or below 1, or the second is above the first.
    """
    key = next((key for key in COUNT_KEYS if key in config), COUNT_KEYS[0])
    count, chosen = config.integer(key), config.integer("num_experts_per_tok")
    if not 1 <= chosen <= count:
        raise ValueError(f"num_experts_per_tok must be from 1 to {count}, the number of experts, not {chosen}")
    return count, chosen


def read_routed_layers(config: ConfigReader, n_layers: int) -> tuple[bool, ...]:
    """Return which layers have experts, from ``decoder_sparse_step`` and ``mlp_only_layers``."""
    step, dense = config.integer("decoder_sparse_step", 1), config.integers("mlp_only_layers")
    require_positive(decoder_sparse_step=step)
    return tuple(_is_routed(number, step, dense) for number in range(n_layers))


def _is_routed(number: int, step: int, dense: Collection[int]) -> bool:
    return number not in dense and (number + 1) % step == 0

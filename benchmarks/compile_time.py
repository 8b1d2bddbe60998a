"""Measure how compile time grows with depth: ``python -m benchmarks.compile_time [--layers 12 48]``.

For a uniform and a patterned family of small width, it compiles the step that scores rows of trees, the step that extends
a state and one that decodes, for each number of layers. Only the compilation is timed, without the compile cache.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp

from birdie_zmq.models import decoder
from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config import complete_config
from birdie_zmq.models.registry import build_architecture

_SIZES = {
    "vocab_size": 512,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "max_position_embeddings": 4096,
}
FAMILIES = {
    "llama (uniform)": {"model_type": "llama", **_SIZES},
    "gemma3_text (period of 6)": {"model_type": "gemma3_text", **_SIZES, "sliding_window": 512},
}
_ROWS, _LENGTH, _CAPACITY = 4, 512, 1024


def steps(architecture: Architecture) -> dict[str, Any]:
    """Return each step to compile: a function and the shapes of its arguments."""

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)  # type: ignore[no-untyped-call]

    params = jax.eval_shape(architecture.init_params, jax.random.key(0))

    def state(rows: int) -> Any:
        return jax.eval_shape(lambda params: decoder.init_state(architecture, params, rows, _CAPACITY), params)

    def trees(*arguments: Any) -> Any:
        return decoder.branch(architecture, *arguments)

    def extend(*arguments: Any) -> Any:
        return decoder.extend(architecture, *arguments)

    row = array(_ROWS, _LENGTH)
    return {
        "trees": (trees, (params, row, row, row, None)),
        "trees behind a state": (trees, (params, row, row, row, state(1))),
        "extend": (extend, (params, array(1, _LENGTH), array(1), state(1))),
        "decode": (extend, (params, array(16, 1), array(16), state(16))),
    }


def main() -> None:
    """Print a table of seconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 48], help="numbers of layers")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)  # type: ignore[no-untyped-call]
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, rows of {_LENGTH} tokens; seconds to compile")
    for family, keys in FAMILIES.items():
        for layers in arguments.layers:
            config = complete_config(keys | {"num_hidden_layers": layers})
            seconds = []
            for name, (function, shapes) in steps(build_architecture(config, "config.json")).items():
                lowered = jax.jit(function).lower(*shapes)
                began = time.perf_counter()
                lowered.compile()
                seconds.append(f"{name} {time.perf_counter() - began:.2f}")
            print(f"{family:26} {layers:3} layers: {', '.join(seconds)}")


if __name__ == "__main__":
    main()

"""Measure the memory that loading a checkpoint takes beyond its weights: ``python -m benchmarks.loading_memory``.

Each load runs in a process of its own, whose peak resident memory is read from the operating system. On the CPU the
device's memory is the host's, so the memory above the weights is the cost of loading itself: one tensor, and the memory
pages of the open shard file. A checkpoint of random weights is written unless a directory is named. With ``--mesh
data:2/model:4`` the devices are virtual, and their memory is the host's too: then "weights" is the sum over all
devices. ``--experts`` writes a mixture of experts, whose tensors are many and small.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from birdie_zmq.engine.mesh_shape import parse_mesh
from birdie_zmq.models.config import CONFIG_FILE, complete_config
from birdie_zmq.models.families.llama import plain_llama, to_hugging_face
from birdie_zmq.models.registry import build_architecture
from birdie_zmq.models.tensor_source import INDEX_FILE

MIB = 2**20
MODEL = plain_llama(
    vocab_size=32_000,
    d_model=2_048,
    n_layers=12,
    n_heads=16,
    n_kv_heads=16,
    d_ff=5_632,
    max_length=2_048,
    tied_head=False,
)


EXPERTS = {
    "model_type": "qwen3_moe",
    "vocab_size": 8_000,
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 1_024,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 256,
    "max_position_embeddings": 2_048,
}
"""The configuration of a Qwen 3 with experts of 360 MiB in float32."""


def write_random(directory: Path, config: dict[str, Any], shards: int) -> None:
    """Write random float32 weights of a model, its tensors in order in shard files of about equal size."""
    rng = np.random.default_rng(0)
    architecture = build_architecture(complete_config(config), CONFIG_FILE)
    tensors = list(architecture.weight_map().tensors())
    total = sum(np.prod(tensor.spec.shape) for _, tensor in tensors)
    names: dict[str, str] = {}
    shard: dict[str, Any] = {}
    written, number = 0, 1
    for name, tensor in tensors:
        shard[name] = rng.standard_normal(tensor.spec.shape, np.float32) * np.float32(0.02)
        names[name] = f"model-{number:05}-of-{shards:05}.safetensors"
        written += shard[name].size
        if written * shards >= total * number or name == tensors[-1][0]:
            save_file(shard, directory / names[name])
            shard, number = {}, number + 1
    (directory / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": names}), encoding="utf-8")
    (directory / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")


def measure(directory: Path, dtype: str, mesh: str | None) -> dict[str, float]:
    """Load in this process; return the bytes of the weights, and the peak resident memory before and after."""
    import jax
    import jax.numpy as jnp

    from birdie_zmq.engine.jax.sharding import make_mesh
    from birdie_zmq.models.loader import load_checkpoint

    device_mesh = None if mesh is None else make_mesh(parse_mesh(mesh))
    jnp.zeros((8, 8)).block_until_ready()
    before = peak_bytes()
    _, params = load_checkpoint(directory, dtype, device_mesh)
    device_bytes = Counter[int]()
    for leaf in jax.tree.leaves(params):
        for shard in leaf.addressable_shards:
            device_bytes[shard.device.id] += shard.data.nbytes
    return {
        "weights": sum(device_bytes.values()),
        "per device": max(device_bytes.values()),
        "before": before,
        "peak": peak_bytes(),
    }


def peak_bytes() -> int:
    """Return the peak resident memory in bytes; getrusage also counts the parent's memory from before exec."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def report(directory: Path, label: str, mesh: str | None) -> None:
    """Load a checkpoint in each dtype and print a line for each."""
    files = [path.stat().st_size for path in directory.glob("*.safetensors")]
    for dtype in ("float32", "bfloat16"):
        command = [sys.executable, "-m", "benchmarks.loading_memory", "--measure", dtype, str(directory)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        if mesh is not None:
            command += ["--mesh", mesh]
            environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={parse_mesh(mesh).size}"
        printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        result = json.loads(printed.splitlines()[-1])
        over = result["peak"] - result["before"] - result["weights"]
        print(
            f"{label:22} {dtype:9} weights {result['weights'] / MIB:7.0f} MiB   "
            f"per device {result['per device'] / MIB:7.0f} MiB   largest shard {max(files) / MIB:7.0f} MiB   "
            f"peak over start {(result['peak'] - result['before']) / MIB:7.0f} MiB   over the weights {over / MIB:6.0f} MiB",
            flush=True,
        )


def main() -> int:
    """Measure one checkpoint or random ones, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, help="a checkpoint to load instead of random weights")
    parser.add_argument(
        "--shards",
        type=int,
        nargs="+",
        default=[1, 4, 16],
        help="shard files of each random checkpoint; default: 1 4 16",
    )
    parser.add_argument("--measure", metavar="DTYPE", help=argparse.SUPPRESS)
    parser.add_argument("--mesh", metavar="data:N/model:M", help="load onto a mesh of N x M virtual devices")
    parser.add_argument("--experts", action="store_true", help="write a mixture of experts")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.directory, options.measure, options.mesh)))
        return 0
    if options.directory is not None:
        report(options.directory, options.directory.name, options.mesh)
        return 0
    for shards in options.shards:
        with tempfile.TemporaryDirectory() as folder:
            write_random(Path(folder), EXPERTS if options.experts else to_hugging_face(MODEL), shards)
            report(Path(folder), f"random, {shards} shards", options.mesh)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The memory that loading a checkpoint takes, beside the size of its weights: ``python -m benchmarks.loading_memory``.

Each load is done in a process of its own, whose peak resident memory is read from the operating system. On the CPU the
device's memory is the host's, so what is above the weights is what loading itself costs: one tensor, and the pages of
the shard that is open. A checkpoint of random weights is written for it unless a directory is named. With ``--mesh
data:2/model:4`` the devices are made up, and their memory is the host's too: then "weights" is what all of them hold.
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

from birdie_zmq.engine.mesh_shape import read_mesh
from birdie_zmq.models.llama import Llama
from birdie_zmq.models.weights import CONFIG_FILE, INDEX_FILE

MIB = 2**20
MODEL = Llama(
    vocab_size=32_000,
    d_model=2_048,
    n_layers=12,
    n_heads=16,
    n_kv_heads=16,
    d_ff=5_632,
    max_length=2_048,
    tied_head=False,
)


def write_random(directory: Path, model: Llama, shards: int) -> None:
    """Write random weights of a model in float32, tensors dealt out in order to shards of about one size."""
    rng = np.random.default_rng(0)
    places = list(model.layout().places())
    total = sum(np.prod(place.stored.shape) for _, place in places)
    names: dict[str, str] = {}
    shard: dict[str, Any] = {}
    written, number = 0, 1
    for name, place in places:
        shard[name] = rng.standard_normal(place.stored.shape, np.float32) * np.float32(0.02)
        names[name] = f"model-{number:05}-of-{shards:05}.safetensors"
        written += shard[name].size
        if written * shards >= total * number or name == places[-1][0]:
            save_file(shard, directory / names[name])
            shard, number = {}, number + 1
    (directory / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": names}), encoding="utf-8")
    (directory / CONFIG_FILE).write_text(json.dumps(model.to_hugging_face()), encoding="utf-8")


def measure(directory: Path, dtype: str, mesh: str | None) -> dict[str, float]:
    """Load in this process; the bytes of the weights, and the peak of resident memory before and after."""
    import jax
    import jax.numpy as jnp

    from birdie_zmq.engine.jax.sharding import make_mesh
    from birdie_zmq.models.loader import load_checkpoint

    spread = None if mesh is None else make_mesh(read_mesh(mesh))
    jnp.zeros((8, 8)).block_until_ready()
    before = _peak_bytes()
    _, params = load_checkpoint(directory, dtype, spread)
    of_device = Counter[int]()
    for leaf in jax.tree.leaves(params):
        for shard in leaf.addressable_shards:
            of_device[shard.device.id] += shard.data.nbytes
    return {
        "weights": sum(of_device.values()),
        "of a device": max(of_device.values()),
        "before": before,
        "peak": _peak_bytes(),
    }


def _peak_bytes() -> int:
    """The most resident memory that this program had; getrusage counts the parent's too, before it became this one."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def report(directory: Path, label: str, mesh: str | None) -> None:
    """Print a line for each dtype."""
    files = [path.stat().st_size for path in directory.glob("*.safetensors")]
    for dtype in ("float32", "bfloat16"):
        command = [sys.executable, "-m", "benchmarks.loading_memory", "--measure", dtype, str(directory)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        if mesh is not None:
            command += ["--mesh", mesh]
            environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={read_mesh(mesh).size}"
        printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        found = json.loads(printed.splitlines()[-1])
        over = found["peak"] - found["before"] - found["weights"]
        print(
            f"{label:22} {dtype:9} weights {found['weights'] / MIB:7.0f} MiB   "
            f"of a device {found['of a device'] / MIB:7.0f} MiB   largest shard {max(files) / MIB:7.0f} MiB   "
            f"peak over start {(found['peak'] - found['before']) / MIB:7.0f} MiB   over the weights {over / MIB:6.0f} MiB",
            flush=True,
        )


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, help="a checkpoint to load instead of random ones")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4, 16], help="default: 1 4 16")
    parser.add_argument("--measure", metavar="DTYPE", help=argparse.SUPPRESS)
    parser.add_argument("--mesh", metavar="data:N/model:M", help="divide the weights over so many devices")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.directory, options.measure, options.mesh)))
        return 0
    if options.directory is not None:
        report(options.directory, options.directory.name, options.mesh)
        return 0
    for shards in options.shards:
        with tempfile.TemporaryDirectory() as folder:
            write_random(Path(folder), MODEL, shards)
            report(Path(folder), f"random, {shards} shards", options.mesh)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

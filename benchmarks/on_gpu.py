"""Measure built-in models on the GPU of this machine, in 15 minutes: ``python -m benchmarks.on_gpu``.

The steps come in the order of what they tell. Each runs in a process of its own with a time limit, and prints its line when
it ends, so an interrupted run has shown the most valuable ones:

- kernels: which kernel computes attention, after it was compared with plain attention on this device;
- scores: texts and their scores in float32 and bfloat16, compared with those of this machine's CPU;
- long: seconds for a text of 65,536 tokens by a 14B model with random weights;
- decode: seconds of a step of 64 rows of 2,048 tokens by that model, and of its limit on an H200;
- trees: the share of an H200's rate of matrix products that a step of trees reaches;
- memory: seconds until the driver has the memory back of a killed process that held that model.

``--install`` installs this checkout for NVIDIA GPUs first. ``--tiny`` takes a small model and short texts, to try the steps
on any machine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

LIMITS = {"kernels": 120, "scores": 180, "long": 210, "decode": 150, "trees": 120, "memory": 100}
"""The steps in their order, and the seconds after which each is ended."""

_PEAK_FLOPS, _BANDWIDTH = 990e12, 4.8e12
_ROWS, _FILLED, _STEP_TOKENS = 64, 2048, 8


def main() -> int:
    """Run the steps; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=LIMITS, help="run only this step")
    parser.add_argument("--tiny", action="store_true", help="a small model and short texts")
    parser.add_argument("--install", action="store_true", help="pip install this checkout for NVIDIA GPUs first")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        _RUN[options.run](options.tiny)
        return 0
    if options.install:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-e", ".[cuda]"], check=True)
    failed = 0
    for name, limit in LIMITS.items():
        if options.only in (None, name):
            failed += not _run_step(name, limit, options.tiny)
    return 1 if failed else 0


def _run_step(name: str, limit: float, tiny: bool) -> bool:
    """Run a step in a process of its own, and print its last line; return whether it succeeded."""
    began = time.monotonic()
    try:
        done = subprocess.run(_command(name, tiny), capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        print(f"{name}: FAILED: not done after {limit:.0f} s", flush=True)
        return False
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no output"]
    state = "" if done.returncode == 0 else "FAILED: "
    print(f"{name}: {state}{lines[-1]} ({time.monotonic() - began:.0f} s)", flush=True)
    return done.returncode == 0


def _command(name: str, tiny: bool) -> list[str]:
    return [sys.executable, "-m", "benchmarks.on_gpu", "--run", name, *["--tiny"] * tiny]


def _architecture(tiny: bool) -> Any:
    from benchmarks.accelerators.steps import ARCHITECTURES
    from birdie_zmq.models.families.llama import plain_llama

    if not tiny:
        return ARCHITECTURES["14b"]()
    return plain_llama(vocab_size=512, d_model=128, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=256, max_length=4096)


def _backend(architecture: Any, dtype: str, max_length: int) -> Any:
    import jax

    from birdie_zmq.engine.jax.backend import JaxBackend
    from birdie_zmq.engine.model_api import resolve
    from birdie_zmq.models.attention import default_target
    from birdie_zmq.models.decoder import build_model

    params = architecture.init_params(jax.random.key(0), dtype)
    return JaxBackend(resolve(build_model(architecture, params, default_target())), max_length)


def _score(backend: Any, lengths: list[int], max_length: int) -> list[float]:
    """Return the rolling log-likelihoods of random texts of these lengths."""
    import numpy as np

    from benchmarks.answers import answers_of
    from benchmarks.long_texts import NumberTokenizer
    from birdie_zmq.engine.evaluator import Evaluator
    from birdie_zmq.engine.tokenizer import TokenizerAdapter
    from birdie_zmq.types import RollingWork

    generator = np.random.default_rng(0)
    texts = [NumberTokenizer().decode(generator.integers(1, backend.vocab_size, n).tolist()) for n in lengths]
    evaluator = Evaluator(TokenizerAdapter(NumberTokenizer()), backend, max_length)
    return [float(x) for x in answers_of(evaluator, RollingWork(texts=texts))]


def _kernels(tiny: bool) -> None:
    del tiny
    import jax

    from birdie_zmq.models.attention import default_target

    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}: attention by {default_target().kernel}")


_TEXTS = [1500, 90, 33]


def _print_scores(tiny: bool) -> None:
    """Print the scores of a small model in both dtypes, as JSON."""
    del tiny  # the model is small in any case
    found = {
        dtype: _score(_backend(_architecture(True), dtype, 2048), _TEXTS, 2048) for dtype in ("float32", "bfloat16")
    }
    print(json.dumps(found))


def _scores(tiny: bool) -> None:
    results = []
    for platform in (None, "cpu"):
        environment = os.environ | ({} if platform is None else {"JAX_PLATFORMS": platform})
        done = subprocess.run(
            _command("print-scores", tiny), env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        results.append(json.loads(done.stdout.splitlines()[-1]))
    differences = {
        dtype: max(abs(a - b) / n for a, b, n in zip(results[0][dtype], results[1][dtype], _TEXTS, strict=True))
        for dtype in results[0]
    }
    text = ", ".join(f"{dtype} {difference:.2g}" for dtype, difference in differences.items())
    if differences["float32"] > 1e-4 or differences["bfloat16"] > 0.01:
        raise SystemExit(f"scores differ from those of the CPU by up to {text} nats per token")
    print(f"scores agree with those of the CPU: up to {text} nats per token")


def _long(tiny: bool) -> None:
    length = 3000 if tiny else 65_536
    backend, seconds = _backend(_architecture(tiny), "bfloat16", length), []
    for _ in range(2):
        began = time.perf_counter()
        (score,) = _score(backend, [length], length)
        seconds.append(time.perf_counter() - began)
    print(
        f"{length:,} tokens in {seconds[1]:.2f} s, {seconds[0]:.1f} s with compiling; {-score / length:.2f} nats per token"
    )


def _decode(tiny: bool) -> None:
    import jax
    import jax.numpy as jnp

    from benchmarks.accelerators.steps import StepShape, build
    from birdie_zmq.models.attention import default_target

    rows, capacity = (4, 256) if tiny else (_ROWS, _FILLED)
    architecture, target = _architecture(tiny), default_target()
    step = build(architecture, "bfloat16", StepShape("decode", rows, 1, capacity), target)
    params = architecture.init_params(jax.random.key(0), "bfloat16")
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), step.arguments[1])
    state = state._replace(lengths=jnp.full(rows, capacity - 5 * _STEP_TOKENS, jnp.int32))
    decode, active = jax.jit(step.function, donate_argnums=1), jnp.ones(rows, jnp.int32)
    size = sum(x.nbytes for x in jax.tree.leaves((params, state)))
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        state, tokens = decode(params, state, jnp.zeros(rows, jnp.int32), active)
        _wait(tokens)
        seconds.append((time.perf_counter() - began) / _STEP_TOKENS)
    print(
        f"{rows} rows of {capacity:,} tokens: {1000 * min(seconds):.1f} ms per step, {rows / min(seconds):,.0f} tokens/s; an "
        f"H200 reads weights and states in {1000 * size / _BANDWIDTH:.1f} ms"
    )


def _trees(tiny: bool) -> None:
    import jax
    import jax.numpy as jnp

    from benchmarks.accelerators.steps import StepShape, build
    from birdie_zmq.models.attention import default_target

    rows, length = (2, 64) if tiny else (16, 1024)
    architecture = _architecture(tiny)
    step = build(architecture, "bfloat16", StepShape("trees", rows, length), default_target())
    params = architecture.init_params(jax.random.key(0), "bfloat16")
    depths = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (rows, length))
    compute, seconds = jax.jit(step.function), []
    for _ in range(4):
        began = time.perf_counter()
        _wait(compute(params, depths, depths, jnp.full((rows, length), length, jnp.int32), None))
        seconds.append(time.perf_counter() - began)
    operations = 2 * rows * length * sum(x.size for layer in params.layers for x in layer.values())
    share = operations / min(seconds) / _PEAK_FLOPS
    print(f"{rows}x{length}: {1000 * min(seconds):.1f} ms, {100 * share:.0f}% of an H200's rate of matrix products")


def _hold(tiny: bool) -> None:
    """Hold a model until the process is killed."""
    import jax

    params = _architecture(tiny).init_params(jax.random.key(0), "bfloat16")
    _wait(params)
    print("held", flush=True)
    time.sleep(600)


def _memory(tiny: bool) -> None:
    before = _used_mib()
    child = subprocess.Popen(_command("hold", tiny), stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    held = _used_mib()
    child.send_signal(signal.SIGKILL)
    child.wait()
    began = time.monotonic()
    while (now := _used_mib()) > before + 256 and time.monotonic() - began < 30:
        time.sleep(0.1)
    print(f"{held - before:,} MiB held, {now - before:,} MiB left {time.monotonic() - began:.1f} s after the kill")


def _wait(arrays: Any) -> None:
    """Wait until the device has computed arrays."""
    import jax

    for leaf in jax.tree.leaves(arrays):
        leaf.block_until_ready()


def _used_mib() -> int:
    """Return the memory that is in use on the first GPU, as its driver counts; 0 without a driver."""
    try:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])
    except FileNotFoundError:
        return 0


_RUN: dict[str, Callable[[bool], None]] = {
    "kernels": _kernels,
    "scores": _scores,
    "print-scores": _print_scores,
    "long": _long,
    "decode": _decode,
    "trees": _trees,
    "memory": _memory,
    "hold": _hold,
}


if __name__ == "__main__":
    sys.exit(main())

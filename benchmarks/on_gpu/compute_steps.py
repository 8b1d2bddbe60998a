"""The steps that compute in their own process: kernels, scores, long texts, generation, decode steps and trees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from benchmarks.on_gpu.scale import Scale

_PEAK_FLOPS, _BANDWIDTH = 990e12, 4.8e12
_STEP_TOKENS = 8
_TEXTS = [1500, 90, 33]


def _backend(size: str, dtype: str, max_length: int) -> Any:
    from benchmarks.decode_counts import CountingBackend
    from benchmarks.on_gpu.random_models import random_model
    from birdie_zmq.engine.model_api import resolve

    return CountingBackend(resolve(random_model(size, dtype)), max_length)


def _number_texts(backend: Any, lengths: list[int]) -> list[str]:
    """Return random texts of the given numbers of tokens, each token a number."""
    import numpy as np

    from benchmarks.long_texts import NumberTokenizer

    generator = np.random.default_rng(0)
    return [NumberTokenizer().decode(generator.integers(1, backend.vocab_size, n).tolist()) for n in lengths]


def _evaluator(backend: Any, max_length: int) -> Any:
    from benchmarks.long_texts import NumberTokenizer
    from birdie_zmq.engine.evaluator import Evaluator
    from birdie_zmq.engine.tokenizer import TokenizerAdapter

    return Evaluator(TokenizerAdapter(NumberTokenizer()), backend, max_length)


def _score(backend: Any, lengths: list[int], max_length: int) -> list[float]:
    """Return the rolling log-likelihoods of random texts of these lengths."""
    from benchmarks.answers import answers_of
    from birdie_zmq.types import RollingWork

    work = RollingWork(texts=_number_texts(backend, lengths))
    return [float(x) for x in answers_of(_evaluator(backend, max_length), work)]


def kernels(scale: Scale) -> str:
    """Say which kernel computes attention."""
    del scale
    import jax

    from birdie_zmq.models.attention import default_target

    return f"{jax.devices()[0].device_kind}, jax {jax.__version__}: attention by {default_target().kernel}"


def print_scores() -> None:
    """Print the scores of a small model in both dtypes, as JSON."""
    scores = {dtype: _score(_backend("tiny", dtype, 2048), _TEXTS, 2048) for dtype in ("float32", "bfloat16")}
    print(json.dumps(scores))


def scores(scale: Scale) -> str:
    """Compare the scores of a small model with those that this machine's CPU computes."""
    del scale  # the model is small in any case
    results = []
    for platform in ({}, {"JAX_PLATFORMS": "cpu"}):
        command = [sys.executable, "-c", "from benchmarks.on_gpu.compute_steps import print_scores; print_scores()"]
        done = subprocess.run(command, env=os.environ | platform, stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    differences = {
        dtype: max(abs(a - b) / n for a, b, n in zip(results[0][dtype], results[1][dtype], _TEXTS, strict=True))
        for dtype in results[0]
    }
    text = ", ".join(f"{dtype} {difference:.2g}" for dtype, difference in differences.items())
    if not (differences["float32"] <= 1e-4 and differences["bfloat16"] <= 0.01):
        raise SystemExit(f"scores differ from those of the CPU by up to {text} nats per token")
    return f"scores agree with those of the CPU: up to {text} nats per token"


def long(scale: Scale) -> str:
    """Score one long text, twice."""
    length = scale.long_tokens
    backend, seconds = _backend(scale.large, "bfloat16", length), []
    for _ in range(2):
        backend._prefix_cache.clear()
        began = time.perf_counter()
        (score,) = _score(backend, [length], length)
        seconds.append(time.perf_counter() - began)
    return f"{length:,} tokens in {seconds[1]:.2f} s, {seconds[0]:.1f} s with compiling; {-score / length:.2f} nats per token"


def generation(scale: Scale) -> str:
    """Generate answers of equal length to prompts that share nothing, through the engine, twice."""
    from benchmarks.answers import answers_of
    from birdie_zmq.types import GenerateWork, GenerationParams

    max_length = 1024 * -(-(scale.prompt_tokens + scale.answer_tokens) // 1024)
    backend, seconds = _backend(scale.large, "bfloat16", max_length), []
    prompts = _number_texts(backend, [scale.prompt_tokens] * scale.rows)
    work = GenerateWork(prompts=prompts, settings=GenerationParams(until=(), max_gen_toks=scale.answer_tokens))
    for _ in range(2):
        backend._prefix_cache.clear()
        backend.decode_steps = 0
        evaluator, began = _evaluator(backend, max_length), time.perf_counter()
        answers = answers_of(evaluator, work)
        seconds.append(time.perf_counter() - began)
    generated, expected = sum(len(text.split()) for text in answers), scale.rows * scale.answer_tokens
    # Token 0 ends an answer, and a random model may choose it.
    if not 0.9 * expected <= generated <= expected:
        raise SystemExit(f"the answers have {generated:,} tokens; {expected:,} were asked for")
    return (
        f"{generated:,} tokens for {scale.rows} prompts of {scale.prompt_tokens:,} tokens in {seconds[1]:.2f} s, prefill "
        f"included ({seconds[0]:.1f} s with compiling): {generated / seconds[1]:,.0f} tokens/s, {backend.decode_steps} decode steps"
    )


def decode(scale: Scale) -> str:
    """Time a decode step, and say how long a device needs to read weights and states once."""
    import jax
    import jax.numpy as jnp

    from benchmarks.accelerators.steps import StepShape, build
    from benchmarks.on_gpu.random_models import SIZES
    from birdie_zmq.engine.jax.compiler_options import compiler_options
    from birdie_zmq.models.attention import default_target

    rows, capacity = scale.rows, scale.capacity
    architecture, target = SIZES[scale.large](), default_target()
    step = build(architecture, "bfloat16", StepShape("decode", rows, 1, capacity), target)
    params = architecture.init_params(jax.random.key(0), "bfloat16")
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), step.arguments[1])
    state = state._replace(lengths=jnp.full(rows, capacity - 5 * _STEP_TOKENS, jnp.int32))
    jitted: Any = jax.jit(step.function, donate_argnums=1, compiler_options=compiler_options())
    active, size = jnp.ones(rows, jnp.int32), sum(x.nbytes for x in jax.tree.leaves((params, state)))
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        state, tokens = jitted(params, state, jnp.zeros(rows, jnp.int32), active)
        jax.block_until_ready(tokens)  # type: ignore[no-untyped-call]
        seconds.append((time.perf_counter() - began) / _STEP_TOKENS)
    return (
        f"{rows} rows of {capacity:,} tokens: {1000 * min(seconds):.1f} ms per step, {rows / min(seconds):,.0f} tokens/s; an "
        f"H200 reads weights and states in {1000 * size / _BANDWIDTH:.1f} ms"
    )


def trees(scale: Scale) -> str:
    """Time a step of trees, and say which share of the rate of matrix products it reaches."""
    import jax
    import jax.numpy as jnp

    from benchmarks.accelerators.steps import StepShape, build
    from benchmarks.on_gpu.random_models import SIZES
    from birdie_zmq.engine.jax.compiler_options import compiler_options
    from birdie_zmq.models.attention import default_target

    rows, length = scale.tree_rows
    architecture = SIZES[scale.large]()
    step = build(architecture, "bfloat16", StepShape("trees", rows, length), default_target())
    params = architecture.init_params(jax.random.key(0), "bfloat16")
    depths = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (rows, length))
    compute: Any = jax.jit(step.function, compiler_options=compiler_options())
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        jax.block_until_ready(compute(params, depths, depths, jnp.full((rows, length), length, jnp.int32), None))  # type: ignore[no-untyped-call]
        seconds.append(time.perf_counter() - began)
    operations = 2 * rows * length * sum(x.size for layer in params.layers for x in layer.values())
    share = operations / min(seconds) / _PEAK_FLOPS
    return f"{rows}x{length}: {1000 * min(seconds):.1f} ms, {100 * share:.0f}% of an H200's rate of matrix products"

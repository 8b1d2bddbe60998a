"""Measure time and memory of long texts: ``python -m benchmarks.long_texts``.

A small random Llama with a large vocabulary scores one text per length, each in a process of its own. The figures are
the seconds of the second run, when everything is compiled, and the peak memory of both runs beyond the weights. On the
CPU the device's memory is the host's, so the resident memory of the process includes all of it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.answers import answers_of
from benchmarks.loading_memory import MIB, peak_bytes
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.models.decoder import build_model
from birdie_zmq.models.families.llama import plain_llama
from birdie_zmq.types import RollingWork

MAX_LENGTH = 65_536
MODEL = plain_llama(
    vocab_size=128_000,
    d_model=256,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    d_ff=512,
    max_length=MAX_LENGTH,
)
LENGTHS = (8_192, 16_384, 32_768, 65_536)


class NumberTokenizer:
    """A tokenizer with one token per word; each word is the token ID in decimal."""

    bos_token_id = 0

    def encode(self, text: str) -> list[int]:
        """Return the token IDs of a text."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        """Return the text of token IDs."""
        return " ".join(map(str, ids))


def measure(length: int) -> dict[str, float]:
    """Score a text of ``length`` tokens twice in this process; return times, bytes, steps and nats per token."""
    params = MODEL.init_params(jax.random.key(0))
    for leaf in jax.tree.leaves(params):
        leaf.block_until_ready()
    backend = JaxBackend(resolve(build_model(MODEL, params)), MAX_LENGTH)
    tokenizer = TokenizerAdapter(NumberTokenizer())
    tokens = np.random.default_rng(0).integers(1, MODEL.vocab_size, size=length)
    work = RollingWork(texts=[NumberTokenizer().decode(tokens.tolist())])
    # Sampling the weights takes more memory than the weights themselves, and that peak must not count for the text.
    # Linux can reset the peak; elsewhere the peak of the text is only visible where it is higher.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _resident_bytes()
    seconds = []
    for _ in range(2):
        # Only compiled executables may remain of the first run.
        backend._prefix_cache.clear()
        evaluator = Evaluator(tokenizer, backend, MAX_LENGTH)
        began = time.perf_counter()
        (loglikelihood,) = answers_of(evaluator, work)
        seconds.append(time.perf_counter() - began)
    return {
        "length": length,
        "first": seconds[0],
        "second": seconds[1],
        "beyond": peak_bytes() - before,
        "weights": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "steps": evaluator.report.steps,
        "computed": evaluator.report.tokens_computed,
        "nats": loglikelihood / length,
    }


def _resident_bytes() -> int:
    """Return the current resident memory of this process in bytes."""
    statistics = Path("/proc/self/statm")
    if statistics.is_file():
        return int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_bytes()


def plot(results: Sequence[dict[str, float]], file: Path) -> None:
    """Plot time and memory over text length to a PNG file."""
    pyplot: Any = importlib.import_module("matplotlib.pyplot")  # only plots need it
    pyplot.switch_backend("agg")
    lengths = [one["length"] for one in results]
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for ax, values, label in (
        (axes[0], [one["second"] for one in results], "seconds"),
        (axes[1], [one["beyond"] / MIB for one in results], "peak memory beyond the weights, MiB"),
    ):
        ax.plot(lengths, values, marker="o")
        ax.set_xlabel("text length, tokens")
        ax.set_ylabel(label)
        ax.set_xticks(lengths, [f"{length:,.0f}" for length in lengths], rotation=30)
        ax.set_ylim(bottom=0)
        ax.grid(visible=True, alpha=0.3)
    figure.savefig(file, dpi=150)


def main() -> None:
    """Measure each length in its own process and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="text lengths in tokens")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="plot time and memory over text length to this PNG file"
    )
    parser.add_argument("--measure", type=int, metavar="LENGTH", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    print(_about(), flush=True)
    results = []
    for length in options.lengths:
        command = [sys.executable, "-m", "benchmarks.long_texts", "--measure", str(length)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
        one = json.loads(printed.splitlines()[-1])
        results.append(one)
        print(
            f"{length:9,} tokens  {one['second']:8.2f} s  {1e3 * one['second'] / length:7.3f} ms per token  "
            f"{one['beyond'] / MIB:7.0f} MiB beyond {one['weights'] / MIB:.0f} MiB of weights  {one['steps']:4} steps  "
            f"{one['computed']:9,} tokens computed  {-one['nats']:7.3f} nats per token",
            flush=True,
        )
    if options.plot:
        plot(results, options.plot)


def _about() -> str:
    """Return a line about the model, the machine and the versions."""
    return (
        f"random Llama: {len(MODEL.layers)} layers of 256, vocabulary {MODEL.vocab_size:,}, float32; one rolling "
        f"text; second run; CPU with {os.cpu_count()} cores, Python {platform.python_version()}, jax {jax.__version__}"
    )


if __name__ == "__main__":
    main()

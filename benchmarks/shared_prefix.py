"""Measure decoding behind one shared prefix: ``python -m benchmarks.shared_prefix --model DIR``.

All prompts begin with the same text of about 1,000 tokens. One process holds its state once for all rows; in another, the
model has no `extend_after`, so each row holds a copy. Both decode the same number of rows together, and run in turn. The
peak resident memory is read from the operating system when each process has compiled and run once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.loading_memory import MIB, peak_bytes

QUESTIONS = (
    "What is {} plus {}?",
    "Name {} cities and {} rivers.",
    "Who was born in the year {}{}?",
    "Is {} more than {}?",
)
SENTENCE = "Answer the question in one short sentence, as in the examples before it. "


def prompts(encode: Any, count: int, tokens: int) -> list[str]:
    """Return prompts that begin with the same text of about this many tokens."""
    prefix = SENTENCE * (tokens // len(encode(SENTENCE)) + 1)
    return [prefix + QUESTIONS[i % len(QUESTIONS)].format(i, 7 * i) for i in range(count)]


def serve(options: argparse.Namespace) -> None:
    """Generate once for each line of standard input; print seconds, peak memory in bytes and texts."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # type: ignore[no-untyped-call]
    import time

    from birdie_zmq.engine.evaluator import Evaluator
    from birdie_zmq.engine.events import Answered
    from birdie_zmq.engine.jax.backend import JaxBackend
    from birdie_zmq.engine.model_api import resolve
    from birdie_zmq.engine.tokenizer import TokenizerAdapter
    from birdie_zmq.models import load_model, load_tokenizer
    from birdie_zmq.types import GenerateWork, GenerationParams, StepLimits

    model = load_model(options.model, dtype="float32")
    if options.serve == "apart":
        model = dataclasses.replace(model, extend_after=None)
    assert model.max_length is not None
    backend = JaxBackend(resolve(model), model.max_length)
    backend.budget = dataclasses.replace(backend.budget, decoding_rows=options.rows, decoding_bytes=None)
    tokenizer = load_tokenizer(options.model, dtype="float32")
    texts = prompts(tokenizer.encode, options.rows, options.tokens)
    work = GenerateWork(prompts=texts, settings=GenerationParams(until=(), max_gen_toks=options.max_gen_toks))
    loaded = peak_bytes()
    for _ in sys.stdin:
        backend._states.clear()
        began = time.perf_counter()
        answers: dict[int, str] = {}
        for event in Evaluator(TokenizerAdapter(tokenizer), backend, model.max_length).answer(work, StepLimits()):
            if isinstance(event, Answered):
                answers.update((index, str(text)) for index, text in zip(event.indices, event.answers, strict=True))
        result = {
            "seconds": time.perf_counter() - began,
            "bytes": peak_bytes() - loaded,
            "texts": sorted(answers.items()),
        }
        print(json.dumps(result), flush=True)


class Process:
    """A process that generates when it is asked."""

    def __init__(self, kind: str, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-m", "benchmarks.shared_prefix", *arguments, "--serve", kind]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def generate(self) -> dict[str, Any]:
        """Generate once, and return the seconds, the peak memory over that of the loaded model, and the texts."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        result: dict[str, Any] = json.loads(self._process.stdout.readline())
        return result

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def main() -> None:
    """Measure both and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face directory")
    parser.add_argument("--rows", type=int, default=64, help="prompts, all decoded together; default: 64")
    parser.add_argument("--tokens", type=int, default=1000, help="about the tokens that all share; default: 1000")
    parser.add_argument("--max-gen-toks", type=int, default=32, help="tokens of each answer; default: 32")
    parser.add_argument("--pairs", type=int, default=3, help="timed runs of each, in turn; default: 3")
    parser.add_argument("--serve", choices=("once", "apart"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    processes = {kind: Process(kind, sys.argv[1:]) for kind in ("once", "apart")}
    results: dict[str, list[dict[str, Any]]] = {kind: [processes[kind].generate()] for kind in processes}
    for number in range(options.pairs):
        for kind in ("once", "apart") if number % 2 == 0 else ("apart", "once"):
            results[kind].append(processes[kind].generate())
    for process in processes.values():
        process.close()
    print(f"$ {shlex.join(['python', '-m', 'benchmarks.shared_prefix', *sys.argv[1:]])}")
    for kind, runs in results.items():
        seconds = [run["seconds"] for run in runs[1:]]
        print(
            f"held {kind:6} peak memory over the loaded model {runs[-1]['bytes'] / MIB:7.0f} MiB   "
            f"median {statistics.median(seconds):6.2f} s"
        )
    ratios = [
        apart["seconds"] / once["seconds"]
        for once, apart in zip(results["once"][1:], results["apart"][1:], strict=True)
    ]
    print(f"time apart / once: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    different = sum(a != b for a, b in zip(results["once"][-1]["texts"], results["apart"][-1]["texts"], strict=True))
    print(f"texts that differ: {different} of {options.rows}")


if __name__ == "__main__":
    main()

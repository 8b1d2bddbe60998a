"""Measure the CPU time of each process per 1,000 requests: ``python -m benchmarks.request_cost``.

A broker, a worker with its model process, and a client run as separate processes. Three workloads are timed: multiple
choice with a model that has a state and computes trees, multiple choice with a model of whole rows, and generation. After
two passes that compile, the CPU seconds of each process (user and system) are read before and after further
passes with new texts. The models are tiny, so that the work around them is visible.

``--python`` names interpreters that have birdie-zmq installed, such as two versions to compare: each repetition measures
all of them, one after the other. ``--passes`` lists numbers of passes, to see whether the cost per request and the memory
grow.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

PROCESSES = ("client", "broker", "agent", "model process")
Kind = Literal["generate_until", "loglikelihood"]
WORKLOADS = ("state", "rows", "generation")

MODEL_FILE = '''
"""A tiny random decoder over bytes, as a model with a state or as a function of whole rows, by its tag."""
import jax
from birdie_zmq import Model
from birdie_zmq.models import decoder
from birdie_zmq.models.families.llama import plain_llama

CONFIG = plain_llama(vocab_size=258, d_model=32, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=64, max_length=512)

class Bytes:
    bos_token_id = 256
    eos_token_id = 257
    def encode(self, text):
        return list(text.encode())
    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode(errors="replace")

def load_model(model_tag, **arguments):
    params = CONFIG.init_params(jax.random.key(0))
    if model_tag == "rows":
        return Model(logits=lambda params, tokens: decoder.logits(CONFIG, params, tokens), params=params, max_length=512)
    return decoder.build_model(CONFIG, params)

def load_tokenizer(model_tag, **arguments):
    return Bytes()
'''


def requests_of(workload: str, count: int, part: int) -> list[tuple[str, object]]:
    """Return the arguments of `count` requests, which differ between parts."""
    if workload == "generation":
        options = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}
        return [
            (f"Question {part}-{number}: what is {number} plus {part}?\nAnswer:", options) for number in range(count)
        ]
    return [
        (f"Question {part}-{number // 4}: {'which of these words follows ' * 6}?\nAnswer:", f" word {number % 4}")
        for number in range(count)
    ]


def cpu_seconds(process: int) -> float:
    """Return the CPU seconds of a process and all its threads, from Linux's per-process clock (nanoseconds)."""
    return time.clock_gettime((~process << 3) | 2)


def memory_mib(process: int) -> float:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def children_of(process: int) -> list[int]:
    """Return the children of a process."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def run_client(endpoint: str, workload: str, count: int, passes: Sequence[int], pids: dict[str, int]) -> None:
    """Run the passes in this process, and print the CPU seconds and the memory of each process as JSON lines."""
    from lm_eval.api.instance import Instance

    from harness_model import BirdieZMQ

    tag = "rows" if workload == "rows" else "state"
    with BirdieZMQ(model_tag=tag, endpoint=endpoint) as lm:
        pids = {"client": os.getpid(), **pids, "model process": children_of(pids["agent"])[0]}
        kind: Kind = "generate_until" if workload == "generation" else "loglikelihood"
        function = getattr(lm, kind)
        part = 0

        def run_pass() -> None:
            nonlocal part
            part += 1
            requests = requests_of(workload, count, part)
            function(
                [Instance(kind, {}, arguments, n) for n, arguments in enumerate(requests)],
                disable_tqdm=True,
            )

        run_pass()
        run_pass()
        for number in passes:
            before = {name: cpu_seconds(pid) for name, pid in pids.items()}
            began = time.monotonic()
            for _ in range(number):
                run_pass()
            seconds = time.monotonic() - began
            used = {name: (cpu_seconds(pid) - before[name]) * 1000 / (count * number) for name, pid in pids.items()}
            memory = {name: memory_mib(pid) for name, pid in pids.items()}
            print(
                json.dumps({"requests": count * number, "seconds": seconds, "cpu": used, "memory": memory}), flush=True
            )


def measure(python: str, workload: str, count: int, passes: Sequence[int]) -> list[dict[str, dict[str, float]]]:
    """Start the processes of one version, run a client, and return what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        model_file = Path(folder, "api.py")
        model_file.write_text(MODEL_FILE)
        endpoint = f"ipc://{folder}/broker"
        command = [python, "-m", "birdie_zmq"]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        started = [
            subprocess.Popen([*command, *arguments, "--quiet"], cwd=folder, env=environment)
            for arguments in (
                ["broker", "--bind", endpoint],
                ["worker", "--connect", endpoint, "--api", str(model_file)],
            )
        ]
        try:
            pids = {"broker": started[0].pid, "agent": started[1].pid}
            inner = [json.dumps(part) for part in (endpoint, workload, count, list(passes), pids)]
            copy = Path(folder, "request_cost_client.py")
            copy.write_text(Path(__file__).read_text())
            client = subprocess.run(
                [python, str(copy), "--client", *inner],
                cwd=folder,
                env=environment,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
        finally:
            for process in reversed(started):
                process.terminate()
            for process in started:
                process.wait()
    return [json.loads(line) for line in client.stdout.splitlines()]


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--client"]:
        run_client(*map(json.loads, sys.argv[2:]))
        return
    parser = argparse.ArgumentParser(description="Measure the CPU time of each process per 1,000 requests.")
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters with birdie-zmq installed")
    parser.add_argument("--workloads", nargs="+", default=WORKLOADS, choices=WORKLOADS)
    parser.add_argument("--requests", type=int, default=2_000, help="requests of one pass")
    parser.add_argument("--passes", type=int, nargs="+", default=[3], help="passes of each reading")
    parser.add_argument("--pairs", type=int, default=3, help="repetitions, in turn for all interpreters")
    options = parser.parse_args()
    for workload in options.workloads:
        print(f"{workload}: CPU seconds per 1,000 requests (memory in MiB)")
        readings: dict[str, list[dict[str, float]]] = {python: [] for python in options.python}
        for _ in range(options.pairs):
            for python in options.python:
                for reading in measure(python, workload, options.requests, options.passes):
                    cpu, memory = reading["cpu"], reading["memory"]
                    readings[python].append(cpu)
                    shown = "; ".join(f"{name} {cpu[name]:.4f} ({memory[name]:.0f})" for name in PROCESSES)
                    print(
                        f"  {python}: {reading['requests']:,} requests in {reading['seconds']:.1f} s: {shown}",
                        flush=True,
                    )
        for python, found in readings.items():
            medians = {name: statistics.median(cpu[name] for cpu in found) for name in PROCESSES}
            path = sum(medians[name] for name in PROCESSES[:3])
            shown = "; ".join(f"{name} {medians[name]:.4f}" for name in PROCESSES)
            print(f"  median of {python}: {shown}; client, broker and agent {path:.4f}")


if __name__ == "__main__":
    main()

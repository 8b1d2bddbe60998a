"""Measure built-in models on the GPU of this machine, in 15 minutes: ``python -m benchmarks.on_gpu``.

The steps come in the order of what they tell. Each runs in a process of its own with a time limit, and prints its line when
it ends, so an interrupted run has shown the most valuable ones:

- kernels: which kernel computes attention, after it was compared with plain attention on this device;
- scores: texts and their scores in float32 and bfloat16, compared with those of this machine's CPU;
- long: seconds for a text of 65,536 tokens by a 14B model with random weights;
- generation: tokens per second of 64 answers by that model, through the engine;
- switch: seconds of model switches between two such models, and the memory that each leaves behind;
- recovery: seconds until answers come again after a model process was killed, and the answers beside undisturbed ones;
- hf: requests in the form of 5-shot MMLU by a 1B model in bfloat16, beside lm_eval's ``--model hf``;
- decode: seconds of a step of 64 rows of 2,048 tokens by the 14B model, and of its limit on an H200;
- trees: the share of an H200's rate of matrix products that a step of trees reaches.

``--install`` installs this checkout for NVIDIA GPUs, and what the step hf needs, first. ``--tiny`` takes small models and
short texts, to try the steps on any machine: ``JAX_PLATFORMS=cpu python -m benchmarks.on_gpu --tiny``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.on_gpu.scale import FULL, TINY, Scale

LIMITS = {
    "kernels": 60,
    "scores": 90,
    "long": 140,
    "generation": 120,
    "switch": 110,
    "recovery": 100,
    "hf": 140,
    "decode": 80,
    "trees": 60,
}
"""The steps in their order, and the seconds after which each is ended; 15 minutes together."""

_MODULES = {
    "compute_steps": ("kernels", "scores", "long", "generation", "decode", "trees"),
    "process_steps": ("switch", "recovery"),
    "hf_step": ("hf",),
}
"""The module of this folder that has the function of each step; --install runs before what they import is there."""


_OF_HF = ("accelerate",)
"""What lm_eval imports for ``--model hf`` beside torch and transformers."""


def main() -> int:
    """Run the steps; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=LIMITS, help="run only this step")
    parser.add_argument("--tiny", action="store_true", help="small models and short texts")
    parser.add_argument("--install", action="store_true", help="pip install this checkout for NVIDIA GPUs first")
    parser.add_argument("--run", choices=LIMITS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(_function(options.run)(TINY if options.tiny else FULL))
        return 0
    if options.install:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "-e", ".[cuda,torch]", *_OF_HF]
        subprocess.run(command, check=True)
    failed = 0
    for name, limit in LIMITS.items():
        if options.only in (None, name):
            failed += not _run_step(name, limit, ["--tiny"] * options.tiny)
    return 1 if failed else 0


def _function(step: str) -> Callable[[Scale], str]:
    """Return the function of a step."""
    module = next(module for module, steps in _MODULES.items() if step in steps)
    function: Callable[[Scale], str] = getattr(importlib.import_module(f"benchmarks.on_gpu.{module}"), step)
    return function


def _run_step(name: str, limit: float, options: list[str]) -> bool:
    """Run a step in a process of its own, and print its last line; return whether it succeeded."""
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.on_gpu", "--run", name, *options]
    # A session of its own, so that the processes that a step has started end with it.
    step = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        output, errors = step.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        print(f"{name}: FAILED: not done after {limit:.0f} s", flush=True)
        return False
    finally:  # also if this run is interrupted
        if step.returncode is None:
            os.killpg(step.pid, signal.SIGKILL)
            step.communicate()
    lines = (output if step.returncode == 0 else errors).strip().splitlines() or ["no output"]
    state = "" if step.returncode == 0 else "FAILED: "
    if step.returncode != 0:  # the cause may stand before the error of a process that waited for it
        print("\n".join(lines[-25:-1]), file=sys.stderr)
    print(f"{name}: {state}{lines[-1]} ({time.monotonic() - began:.0f} s)", flush=True)
    return step.returncode == 0


if __name__ == "__main__":
    sys.exit(main())

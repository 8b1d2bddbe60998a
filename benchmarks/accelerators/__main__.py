"""Compile the steps of built-in models for GPUs and TPUs that this machine lacks: ``python -m benchmarks.accelerators``.

It fails if a step does not compile, needs more temporary memory than its bound, has a loop whose length only the device
knows, copies its state, or lacks flash attention where it is expected. ``tox -e accelerators`` installs what it needs.

Not checked: run time, and whether a kernel computes the right thing (a model process checks that on its device when it
loads). cuDNN chooses its kernel on the device: here only JAX's and XLA's own conditions are checked, with the compute
capability of the chip. Seconds of compiling are of this machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from benchmarks.accelerators.architectures import ARCHITECTURES
from benchmarks.accelerators.checks import CHECKS, MIB, Check
from benchmarks.accelerators.compiling import Facts, compile_step
from benchmarks.accelerators.topologies import CHIPS, check_platform


def main() -> int:
    """Print a line for each step; return 1 if one fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chip", choices=CHIPS, help="only steps for this chip")
    parser.add_argument("--model", choices=ARCHITECTURES, help="only steps of this model")
    parser.add_argument(
        "--step", help="only steps of this shape, such as decode:64@2048; one without a bound may be new"
    )
    parser.add_argument("--hlo", type=Path, help="write the optimised program of each step to a file in this folder")
    arguments = parser.parse_args()
    check_platform()
    jax.config.update("jax_enable_compilation_cache", False)  # type: ignore[no-untyped-call]
    chosen = [
        check
        for check in CHECKS
        if arguments.chip in (None, check.chip)
        and arguments.model in (None, check.model)
        and arguments.step in (None, check.shape)
    ]
    if not chosen and arguments.step and arguments.chip and arguments.model:
        chosen = [Check(arguments.chip, arguments.model, "bfloat16", arguments.step, 2**20, flash=False)]
    failed, began = 0, time.monotonic()
    for check in chosen:
        try:
            facts = compile_step(check.chip, check.model, check.dtype, check.step, check.devices)
        except jax.errors.JaxRuntimeError as error:
            print(f"{check}: FAILS to compile: {str(error)[:500]}", flush=True)
            failed += 1
            continue
        faults = check.faults(facts)
        failed += bool(faults)
        print(f"{check}: {describe(facts)}" + "".join(f"; FAILS: {fault}" for fault in faults), flush=True)
        if arguments.hlo is not None:
            arguments.hlo.mkdir(parents=True, exist_ok=True)
            (arguments.hlo / f"{check}.txt".replace(" ", "_")).write_text(facts.text)
    print(f"{len(chosen) - failed} of {len(chosen)} steps passed in {time.monotonic() - began:.0f} s")
    return 1 if failed or not chosen else 0


def describe(facts: Facts) -> str:
    """Return what the compiler says of a step, as one line."""
    state = f", state {facts.state_bytes / MIB:.0f} MiB" if facts.state_bytes else ""
    return (
        f"compiled in {facts.seconds:.0f} s, temporary {facts.temporary_bytes / MIB:.0f} MiB{state}, "
        f"loops {facts.loops} ({facts.unknown_loops} of unknown length), "
        f"{'flash attention' if facts.flash else 'attention in XLA'}"
    )


if __name__ == "__main__":
    sys.exit(main())

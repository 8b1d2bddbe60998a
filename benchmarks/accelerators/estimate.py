"""Estimate on paper how long an H200 takes: ``python -m benchmarks.accelerators.estimate``.

The operations and bytes of the compiled programs are counted (`program_cost`), and each instruction takes the longer of
both at the chip's peak rates. The limit is the longer of all operations, and of reading weights and filled states once.
Real time is longer by what kernels do not reach. Nothing is run.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from benchmarks.accelerators.compiling import Facts, compile_step
from benchmarks.accelerators.program_cost import Cost, Program
from benchmarks.accelerators.steps import TOKENS_PER_CALL, StepShape
from benchmarks.accelerators.topologies import CHIPS, check_platform

CHIP, MODEL, DTYPE = "h200", "14b", "bfloat16"
TEXT_TOKENS, CHUNK, HEAD_POSITIONS = 65_536, 4096, 1024
DECODE = StepShape.parse("decode:64@2048")


def main() -> int:
    """Print an estimate and its limit for a long text and for a decode step."""
    check_platform()
    jax.config.update("jax_enable_compilation_cache", False)  # type: ignore[no-untyped-call]
    extend = _compile(StepShape("extend", 1, CHUNK, TEXT_TOKENS))
    head = _compile(StepShape("head", HEAD_POSITIONS))
    total = Cost()
    for begin in range(0, TEXT_TOKENS, CHUNK):
        total = total.plus(_cost(extend, begin))
    total = total.plus(_cost(head), TEXT_TOKENS // HEAD_POSITIONS)
    weights = extend.argument_bytes - extend.state_bytes
    _report(f"a text of {TEXT_TOKENS:,} tokens", total, weights * TEXT_TOKENS // CHUNK)
    decode = _compile(DECODE)
    one = Cost(*(x / TOKENS_PER_CALL for x in _cost(decode)))
    _report(f"a decode step of {DECODE.rows} rows of {DECODE.capacity:,} tokens", one, decode.argument_bytes)
    return 0


def _compile(shape: StepShape) -> Facts:
    return compile_step(CHIP, MODEL, DTYPE, shape)


def _cost(facts: Facts, filled: int | None = None) -> Cost:
    chip = CHIPS[CHIP]
    return Program(facts.text, chip.flops, chip.bandwidth, filled).cost()


def _report(what: str, cost: Cost, least_bytes: float) -> None:
    chip = CHIPS[CHIP]
    limit = max(cost.operations / chip.flops, least_bytes / chip.bandwidth)
    print(
        f"{MODEL} on {CHIP}, {what}: {cost.operations / 1e12:,.2f} Tflop, {cost.bytes / 1e9:,.1f} GB; on paper "
        f"{1000 * cost.seconds:,.1f} ms, {cost.seconds / limit:.2f} times the limit of {1000 * limit:,.1f} ms",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())

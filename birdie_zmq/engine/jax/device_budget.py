"""The size of steps on a GPU or a TPU, from the device's memory and rates and from the size of the model. Pure.

A step of few tokens takes as long as reading the weights, or as starting it. The budget is therefore given in time: a step
should take so long that neither matters, and no longer, since a long step delays the first scores and takes memory.
"""

from __future__ import annotations

from typing import NamedTuple

from birdie_zmq.engine.planning.shape_buckets import MAX_CHUNK_TOKENS, StepBudget


class Rates(NamedTuple):
    """The peak rate of 16-bit matrix products in operations per second, and the bandwidth of memory in bytes per second."""

    flops: float
    bandwidth: float


class ModelSize(NamedTuple):
    """The number of parameters of a model on one device, and their size in bytes."""

    parameters: int
    weight_bytes: int


RATES = {
    "B200": Rates(2250e12, 8.0e12),
    "H200": Rates(990e12, 4.8e12),
    "H100": Rates(990e12, 3.35e12),
    "A100": Rates(312e12, 2.0e12),
    "L40": Rates(181e12, 864e9),
    "L4": Rates(121e12, 300e9),
    "RTX 4090": Rates(165e12, 1.0e12),
    "TPU v6 lite": Rates(918e12, 1.64e12),
    "TPU v5 lite": Rates(197e12, 819e9),
    "TPU v5": Rates(459e12, 2.77e12),
    "TPU v4": Rates(275e12, 1.2e12),
}
"""The rates of devices, by what JAX's `device_kind` contains; of several, the first."""

OTHER_RATES = Rates(150e12, 1.0e12)
"""The rates of a device that is not in the table."""

_STEP_SECONDS = 0.25
"""How long a step may take at the rates that matrix products reach."""

_CALL_SECONDS = 0.002
"""The fixed time of a call: its start, and kernels too small for the device."""

_REACHED = 0.5
"""The share of the peak rate that large matrix products reach."""

_FULL_PRECISION = 1 / 16
"""The rate of float32 products in full precision, relative to 16 bit."""

_GREATEST_TOKENS, _LEAST_TOKENS = 2**16, 2**11
_GREATEST_CHUNK = 4096
_GREATEST_ROWS, _LEAST_ROWS = 256, 32


def rates_of(device_kind: str) -> Rates:
    """Return the rates of a kind of device, as JAX names it."""
    return next((rates for name, rates in RATES.items() if name in device_kind), OTHER_RATES)


def device_budget(rates: Rates, size: ModelSize, free_bytes: int | None) -> StepBudget:
    """Return the limits of a step's size on one device.

    Args:
        rates: The device's.
        size: The model's.
        free_bytes: The memory beside the weights; None if it is not known.
    """
    is_wide = size.weight_bytes > 3 * size.parameters
    reached = rates.flops * _REACHED * (_FULL_PRECISION if is_wide else 1.0)
    token_seconds = 2 * max(1, size.parameters) / reached
    free = 2**34 if free_bytes is None else free_bytes
    tokens = _power_of_two(_STEP_SECONDS / token_seconds, _LEAST_TOKENS, _GREATEST_TOKENS)
    # The rows for which a decode step computes as long as it reads weights; more rows only take turns.
    rows = reached * size.weight_bytes / (2 * max(1, size.parameters) * rates.bandwidth)
    return StepBudget(
        tokens=tokens,
        call_tokens=max(32, min(1024, round(_CALL_SECONDS / token_seconds))),
        row_tokens=1,
        logits_bytes=_power_of_two(free / 16, 2**27, 2**31),
        head_bytes=_power_of_two(free / 128, 2**24, 2**28),
        rows=256,
        tokens_per_call=8,
        decoding_rows=_power_of_two(rows, _LEAST_ROWS, _GREATEST_ROWS),
        chunk_tokens=max(MAX_CHUNK_TOKENS, min(_GREATEST_CHUNK, tokens)),
        prefix_cache_bytes=_power_of_two(free / 8, 2**28, 2**34),
    )


def _power_of_two(number: float, least: int, greatest: int) -> int:
    """Return the largest power of two up to a number, within bounds."""
    return min(greatest, max(least, 1 << max(0, int(number).bit_length() - 1)))

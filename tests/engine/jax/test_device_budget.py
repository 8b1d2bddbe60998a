"""The size of steps on made-up devices."""

import pytest

from birdie_zmq.engine.jax.device_budget import OTHER_RATES, ModelSize, Rates, device_budget, rates_of
from birdie_zmq.engine.planning.shape_buckets import Buckets

H200 = rates_of("NVIDIA H200")
V5E = rates_of("TPU v5 lite")
GB = 10**9


def of_bfloat16(parameters: float) -> ModelSize:
    return ModelSize(int(parameters), 2 * int(parameters))


def test_the_rates_of_a_device_are_found_by_its_name() -> None:
    assert Rates(990e12, 4.8e12) == H200
    assert rates_of("NVIDIA H100 80GB HBM3").flops == H200.flops
    assert V5E.bandwidth == 819e9
    assert rates_of("TPU v5p") == Rates(459e12, 2.77e12)
    assert rates_of("NVIDIA L4").bandwidth < rates_of("NVIDIA L40S").bandwidth
    assert rates_of("something new") == OTHER_RATES


@pytest.mark.parametrize(
    ("rates", "size", "tokens", "call_tokens", "rows"),
    [
        (H200, of_bfloat16(1.2e9), 2**15, 412, 64),
        (H200, of_bfloat16(14e9), 2**12, 35, 64),
        (H200, of_bfloat16(135e6), 2**16, 1024, 64),
        (H200, ModelSize(14 * GB, 56 * GB), 2**11, 32, 32),  # float32
        (V5E, of_bfloat16(1.2e9), 2**13, 82, 64),
        (V5E, of_bfloat16(8e9), 2**11, 32, 64),
    ],
)
def test_a_step_has_as_many_tokens_as_it_computes_in_a_quarter_of_a_second(
    rates: Rates, size: ModelSize, tokens: int, call_tokens: int, rows: int
) -> None:
    budget = device_budget(rates, size, 64 * GB)
    assert (budget.tokens, budget.call_tokens, budget.decoding_rows) == (tokens, call_tokens, rows)


def test_a_large_gpu_prefills_longer_chunks_than_a_cpu() -> None:
    budget = device_budget(H200, of_bfloat16(14e9), 100 * GB)
    assert Buckets(2**17, vocab_size=0, budget=budget).chunk_lengths(16)[-1] == 4096
    assert device_budget(OTHER_RATES, of_bfloat16(70e9), 100 * GB).chunk_tokens == 2048


def test_the_prefix_cache_takes_an_eighth_of_the_free_memory() -> None:
    sizes = [device_budget(H200, of_bfloat16(1e9), free).prefix_cache_bytes for free in (None, 2**36, 2**33, 2**20)]
    assert sizes == [2**31, 2**33, 2**30, 2**28]


def test_logits_take_little_of_a_small_memory() -> None:
    small, large = (device_budget(H200, of_bfloat16(1e9), free) for free in (2**32, 2**37))
    assert (small.logits_bytes, small.head_bytes) == (2**28, 2**25)
    assert (large.logits_bytes, large.head_bytes) == (2**31, 2**28)
    assert device_budget(H200, ModelSize(0, 0), None).tokens == 2**16

"""What XLA is told of how to compile, and that it is no reason to fail."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import jax
import pytest

from birdie_zmq.engine.jax import compiler_options as module
from birdie_zmq.engine.jax.compiler_options import compiler_options, options_for


@pytest.fixture
def anew() -> Iterator[None]:
    """What a process finds out once is found out again."""
    compiler_options.cache_clear()
    yield
    compiler_options.cache_clear()


def test_on_a_gpu_no_kernels_are_tried_for_each_product() -> None:
    assert options_for("gpu", {}) == {"xla_gpu_enable_triton_gemm": False}
    assert options_for("gpu", {"XLA_FLAGS": "--xla_dump_to=/tmp"}) == {"xla_gpu_enable_triton_gemm": False}


@pytest.mark.parametrize("flags", ["--xla_gpu_enable_triton_gemm=true", "--xla_x=1 --xla_gpu_enable_triton_gemm=false"])
def test_what_the_user_says_is_left_alone(flags: str) -> None:
    assert options_for("gpu", {"XLA_FLAGS": flags}) == {}


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_other_devices_compile_as_ever(platform: str) -> None:
    assert options_for(platform, {}) == {}


@pytest.mark.usefixtures("anew")
def test_this_xla_takes_the_options(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options() == {"xla_gpu_enable_triton_gemm": False}
    assert not caplog.records


@pytest.mark.usefixtures("anew")
def test_an_xla_that_does_not_know_them_compiles_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(module, "_FOR_GPUS", {"xla_gpu_of_another_time": False})
    with caplog.at_level(logging.WARNING):
        assert compiler_options() is None
    assert "xla_gpu_of_another_time" in caplog.text

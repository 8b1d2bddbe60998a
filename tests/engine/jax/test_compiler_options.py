"""Compiler options for XLA; rejected options are no reason to fail."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import jax
import pytest

from birdie_zmq.engine.jax import compiler_options as module
from birdie_zmq.engine.jax.compiler_options import compiler_options, options_for


@pytest.fixture
def clear_cached_options() -> Iterator[None]:
    """Clear the options that a process determines once."""
    compiler_options.cache_clear()
    yield
    compiler_options.cache_clear()


GPU = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": "0"}


def test_gpus_have_options() -> None:
    assert options_for("gpu", {}) == GPU
    assert options_for("gpu", {"XLA_FLAGS": "--xla_dump_to=/tmp"}) == GPU


@pytest.mark.parametrize("flags", ["--xla_gpu_enable_triton_gemm=true", "--xla_x=1 --xla_gpu_enable_triton_gemm=false"])
def test_xla_flags_take_precedence(flags: str) -> None:
    assert options_for("gpu", {"XLA_FLAGS": flags}) == {"xla_gpu_dot_merger_threshold_mb": "0"}


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_other_platforms_get_no_options(platform: str) -> None:
    assert options_for(platform, {}) == {}


@pytest.mark.usefixtures("clear_cached_options")
def test_installed_xla_accepts_the_options(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options() == GPU
    assert not caplog.records


@pytest.mark.usefixtures("clear_cached_options")
def test_options_are_dropped_where_xla_rejects_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(module, "_GPU_OPTIONS", {"xla_gpu_of_another_time": False})
    with caplog.at_level(logging.WARNING):
        assert compiler_options() is None
    assert "xla_gpu_of_another_time" in caplog.text

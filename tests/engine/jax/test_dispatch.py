"""Dispatch of executables: which thread calls them, and under which settings."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq.engine.jax.dispatch import AlternatingDispatch


def test_steps_alternate_between_the_thread_of_the_caller_and_another() -> None:
    dispatch = AlternatingDispatch()
    threads: list[list[int]] = []

    for _ in range(4):
        with dispatch.step():
            threads.append([dispatch.call(threading.get_ident, ()) for _ in range(3)])
    outside = dispatch.call(threading.get_ident, ())

    own = threading.get_ident()
    assert all(len(set(calls)) == 1 for calls in threads), "the calls of a step have one order"
    other, first, second, third = (calls[0] for calls in threads)
    assert [first, third, outside] == [own] * 3
    assert other == second != own


def test_executables_run_under_the_settings_of_the_engine_in_the_other_thread() -> None:
    dispatch = AlternatingDispatch()
    executable = jax.jit(lambda x: x / x).lower(jnp.zeros(1)).compile()

    name = "jax_debug_nans"
    before = getattr(jax.config, name)
    jax.config.update(name, True)  # type: ignore[no-untyped-call]
    try:
        with dispatch.step():
            result = dispatch.call(executable, (jnp.zeros(1),))
            assert np.isnan(np.asarray(result)).all()
    finally:
        jax.config.update(name, before)  # type: ignore[no-untyped-call]


def test_an_error_of_an_executable_reaches_the_caller() -> None:
    def fail() -> None:
        raise ValueError("out of order")

    dispatch = AlternatingDispatch()
    for _ in range(2):
        with dispatch.step(), pytest.raises(ValueError, match="out of order"):
            dispatch.call(fail, ())

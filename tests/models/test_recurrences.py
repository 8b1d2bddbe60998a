"""Recurrences in chunks give the states of their formula, token by token, and the company of a request changes no score."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.events import Answered
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.planning.execution_mode import FORKS
from birdie_zmq.engine.prefix_cache import ANY_CAPACITY, capacity_for
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.models import selective_scan, state_space_duality
from birdie_zmq.models.mamba2_mixer import Mamba2Mixer
from birdie_zmq.types import LogLikelihoodWork, StepLimits
from tests.engine.jax.test_decoding import LETTERS, Alphabet
from tests.models.test_decoder import RECURRENT, architecture, build_functions

CLOSE = 1e-5


def sample(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(shape)


def in_float32(*arrays: NDArray[np.float64]) -> list[jax.Array]:
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@pytest.mark.parametrize("length", [1, 7, 70, 150])
def test_chunks_of_mamba_2_give_the_states_of_its_recurrence(length: int) -> None:
    rows, groups, heads, width, key_width = 2, 2, 4, 3, 5
    x, keys, queries = sample(rows, length, heads, width), *sample(2, rows, length, groups, key_width, seed=1)
    time_step = np.abs(sample(rows, length, heads, seed=2))
    time_step[1, length // 2 :] = 0  # padding
    log_decay, before = -3.0 * time_step, sample(rows, heads, width, key_width, seed=3)
    state, expected = before.copy(), []
    for t in range(length):
        of_heads = [np.repeat(each[:, t], heads // groups, axis=1) for each in (keys, queries)]
        added = time_step[:, t, :, None, None] * x[:, t, :, :, None] * of_heads[0][:, :, None]
        state = np.exp(log_decay[:, t])[..., None, None] * state + added
        expected.append(np.einsum("bhpn,bhn->bhp", state, of_heads[1]))
    inputs = state_space_duality.Inputs(*in_float32(x, time_step, log_decay, keys, queries))
    y, after = jax.jit(state_space_duality.chunked_scan)(inputs, *in_float32(before))
    np.testing.assert_allclose(y, np.stack(expected, axis=1), atol=CLOSE)
    np.testing.assert_allclose(after, state, atol=CLOSE)


def test_strong_decays_do_not_blur_the_weak_ones_behind_them() -> None:
    """A difference of plain float32 sums would be wrong by 1e-3 here."""
    log_decay = np.full((1, 64, 1), -0.001)
    log_decay[0, :40] = -180.0
    between, _ = state_space_duality.decays(*in_float32(log_decay))
    sums = np.cumsum(log_decay[0, :, 0])
    expected = np.tril(np.exp(np.minimum(sums[:, None] - sums[None], 0.0)))
    np.testing.assert_allclose(between[0, 0], expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("length", [1, 7, 40])
def test_chunks_of_mamba_give_the_states_of_its_recurrence(length: int) -> None:
    rows, channels, width = 2, 4, 3
    x, keys, queries = sample(rows, length, channels), *sample(2, rows, length, width, seed=1)
    time_step = np.abs(sample(rows, length, channels, seed=2))
    time_step[1, length // 2 :] = 0  # padding
    rates, before = -np.exp(sample(channels, width, seed=3)), sample(rows, channels, width, seed=4)
    state, expected = before.copy(), []
    for t in range(length):
        added = (time_step[:, t] * x[:, t])[..., None] * keys[:, t, None]
        state = np.exp(time_step[:, t, :, None] * rates) * state + added
        expected.append(np.einsum("bin,bn->bi", state, queries[:, t]))
    inputs = selective_scan.Inputs(*in_float32(x, time_step, keys, queries))
    y, after = jax.jit(selective_scan.selective_scan)(inputs, *in_float32(rates, before))
    np.testing.assert_allclose(y, np.stack(expected, axis=1), atol=CLOSE)
    np.testing.assert_allclose(after, state, atol=CLOSE)


def scores(evaluator: Evaluator, pairs: list[tuple[str, str]]) -> list[Any]:
    """Return the answers to pairs, in their order."""
    found: dict[int, Any] = {}
    for event in evaluator.answer(LogLikelihoodWork(pairs=pairs), StepLimits()):
        if isinstance(event, Answered):
            found |= dict(zip(event.indices, event.answers, strict=True))
    return [found[index] for index in range(len(pairs))]


@pytest.mark.parity
@pytest.mark.variant
@pytest.mark.parametrize("kind", sorted(RECURRENT))
def test_a_request_has_the_same_score_in_any_company(kind: str) -> None:
    """Alone; among requests that continue its context, from copies of one state; and beside longer and shorter texts."""
    model, *_ = build_functions(kind)
    backend = JaxBackend(resolve(model), 64)
    assert backend.text_mode is FORKS
    evaluator = Evaluator(TokenizerAdapter(Alphabet()), backend, 64)
    context = LETTERS[3:23]
    alone = scores(evaluator, [(context, "xyz")])[0]
    family = [(context, "xyz"), *((context, letter * 3) for letter in LETTERS[:5])]
    crowd = [(LETTERS[::-1], "abc"), ("ab", "c"), (context, "xyz"), (LETTERS[7:15], "hij"), (context[:9], "x")]
    for company, index in ((family, 0), (crowd, 2)):
        answers = scores(evaluator, company)
        assert answers[index][0] == pytest.approx(alone[0], abs=CLOSE)
        assert answers[index][1] == alone[1]
        assert len({round(answer[0], 3) for answer in answers}) == len(company)


def test_states_of_a_recurrence_alone_have_any_capacity() -> None:
    """So texts of any length are computed by the same executables, and every cached state can be continued."""
    for kind, capacity in (("mamba2", ANY_CAPACITY), ("llama", capacity_for(300))):
        backend = JaxBackend(resolve(build_functions(kind)[0]), 64)
        assert backend._states.capacity_for(300) == capacity


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("mamba2", {"rms_norm": False}, r"rms_norm=False is not supported, only True"),
        ("mamba2", {"hidden_act": "tanh"}, r"the activation 'tanh' is not supported"),
        ("mamba2", {"n_groups": 3}, r"4 heads of the mixer are not a multiple of its 3 groups"),
        ("mamba2", {"time_step_limit": [0.1]}, r"time_step_limit must be a list of 2 numbers"),
        ("mamba", {"conv_kernel": 0}, r"conv_kernel must be at least 1"),
        ("mamba", {"residual_in_fp32": "yes"}, r"residual_in_fp32"),
        ("falcon_h1", {"mlp_multipliers": [1.0]}, r"mlp_multipliers must be a list of 2 numbers"),
        ("falcon_h1", {"ssm_multipliers": [1.0, 2.0]}, r"ssm_multipliers must be a list of 5 numbers"),
    ],
)
def test_an_unknown_variant_is_refused_by_name(kind: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        architecture(kind, **change)


def test_time_steps_are_limited() -> None:
    mixer = architecture("mamba2", time_step_limit=[0.01, 0.5]).layers[0].recurrence
    assert isinstance(mixer, Mamba2Mixer)
    assert mixer.time_step_limit == (0.01, 0.5)

"""JAX's global settings, as a program may have set them for its own purposes: answers do not depend on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq import Model, models
from harness_model import BirdieZMQ
from tests.instances import instance

SETTINGS: list[tuple[str, object]] = [
    ("jax_enable_x64", True),
    ("jax_default_prng_impl", "rbg"),
    ("jax_threefry_partitionable", False),
    ("jax_high_dynamic_range_gumbel", True),
    ("jax_numpy_rank_promotion", "raise"),
    ("jax_numpy_dtype_promotion", "strict"),
    ("jax_default_matmul_precision", "bfloat16"),
    ("jax_debug_nans", True),
    ("jax_debug_infs", True),
    ("jax_disable_jit", True),
    ("jax_check_tracer_leaks", True),
    ("jax_legacy_prng_key", "error"),
    ("jax_transfer_guard", "disallow"),
]


@pytest.fixture
def setting(request: pytest.FixtureRequest) -> Iterator[None]:
    name, value = request.param
    if not hasattr(jax.config, name):
        pytest.skip(f"this version of jax has no {name}")
    before = getattr(jax.config, name)
    jax.config.update(name, value)  # type: ignore[no-untyped-call]
    yield
    if name == "jax_transfer_guard":
        before = "allow"
    jax.config.update(name, getattr(before, "value", before))  # type: ignore[no-untyped-call]


def answers(**arguments: Any) -> list[Any]:
    """Return scores of pairs and of a text, and texts that are chosen in three ways."""
    pairs = [("The capital of France is", " Paris"), ("Fenn and Delia sat", " down to eat."), ("", "Once upon a time")]
    chosen: list[dict[str, Any]] = [
        {"do_sample": False},
        {"do_sample": True, "temperature": 1.0, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
        {"do_sample": True, "temperature": 1.2, "repetition_penalty": 1.2, "min_new_tokens": 3},
    ]
    with BirdieZMQ(**arguments) as lm:
        scored = lm.loglikelihood([instance("loglikelihood", pair, 0) for pair in pairs], disable_tqdm=True)
        rolled = lm.loglikelihood_rolling(
            [instance("loglikelihood_rolling", ("Fenn came to the blue gate. " * 3,), 0)], disable_tqdm=True
        )
        texts = lm.generate_until(
            [
                instance("generate_until", (prompt, {"until": ["\n"], "max_gen_toks": 8, **kwargs}), number)
                for number, kwargs in enumerate(chosen)
                for prompt in ("Fenn and", "Delia")
            ],
            disable_tqdm=True,
        )
    return [[score for score, _ in scored] + rolled, texts]


def demo() -> dict[str, Any]:
    return {"model": models.load_model("demo"), "tokenizer": models.load_tokenizer("demo")}


@pytest.fixture(scope="module")
def plain() -> list[Any]:
    return answers(**demo())


@pytest.mark.parametrize("setting", SETTINGS, indirect=True, ids=[name for name, _ in SETTINGS])
@pytest.mark.usefixtures("setting")
def test_answers_of_a_built_in_model_do_not_depend_on_a_setting(plain: list[Any]) -> None:
    scores, texts = answers(**demo())
    np.testing.assert_allclose(scores, plain[0], atol=1e-4)
    assert texts == plain[1]


class Letters:
    """A tokenizer of letters."""

    bos_token_id = eos_token_id = 0

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 31 + 1 for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(ord("a") + token) for token in ids)


def recurrent(seen: list[object]) -> Model:
    """Return a model with a state whose functions note the setting that they are traced under."""

    def init_state(params: Any, batch: int, capacity: int) -> Any:
        return jnp.zeros((batch, 8))

    def extend(params: Any, tokens: Any, lengths: Any, state: Any) -> Any:
        seen.append(getattr(jax.config, "jax_numpy_rank_promotion"))  # noqa: B009
        real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
        added = params["in"][tokens] * real[..., None]
        hidden = state[:, None] + jnp.cumsum(added, axis=1)
        return jnp.tanh(hidden), hidden[:, -1]

    def unembed(params: Any, hidden: Any) -> Any:
        return hidden @ params["out"]

    keys = [jax.random.wrap_key_data(jnp.array([0, seed], jnp.uint32), impl="threefry2x32") for seed in (1, 2)]
    params = {
        "in": jax.random.normal(keys[0], (32, 8), jnp.float32),
        "out": jax.random.normal(keys[1], (8, 32), jnp.float32),
    }
    return Model(params=params, init_state=init_state, extend=extend, unembed=unembed, max_length=256)


@pytest.mark.parametrize("setting", [("jax_numpy_rank_promotion", "raise")], indirect=True)
@pytest.mark.usefixtures("setting")
def test_functions_of_the_users_model_are_traced_under_the_users_settings() -> None:
    seen: list[object] = []
    answers(model=recurrent(seen), tokenizer=Letters())
    assert set(seen) == {"raise"}


@pytest.mark.parametrize("setting", [("jax_enable_x64", True)], indirect=True)
@pytest.mark.usefixtures("setting")
def test_model_in_64_bits_keeps_them() -> None:
    seen: list[object] = []
    model = recurrent(seen)
    wide = Model(**{**vars(model), "params": jax.tree.map(lambda x: x.astype(jnp.float64), model.params)})
    in_64_bits, in_32_bits = (answers(model=one, tokenizer=Letters()) for one in (wide, model))
    np.testing.assert_allclose(in_64_bits[0], in_32_bits[0], atol=1e-3)
    assert in_64_bits[1] == in_32_bits[1]

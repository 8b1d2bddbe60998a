"""End-to-end tests of the model files of examples/."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import EXAMPLES

CONTEXT = "The mill of Oldbrook was built of grey stone. " * 4
PAIRS = [
    (f"{CONTEXT}Who built mill {number}?", f" {name}")
    for number in range(6)
    for name in ("Una", "Mira", "Tom", "Una's")
]


def test_recurrent_model_computes_shared_prefixes_once_with_equal_scores(example: Callable[[str], Any]) -> None:
    module = example("gated_rnn")
    params = module.load_model("rnn").params

    def expected_score(context: str, continuation: str) -> float:
        tokens = list((context + continuation).encode())
        row = jnp.array([tokens[:-1]])
        hidden, _ = module.extend(params, row, jnp.array([row.shape[1]]), module.init_state(params, 1, row.shape[1]))
        scores = np.asarray(jax.nn.log_softmax(module.unembed(params, hidden[0])), np.float64)
        count = len(continuation.encode())
        return float(scores[-count:][np.arange(count), tokens[-count:]].sum())

    requests = [instance("loglikelihood", pair, number) for number, pair in enumerate(PAIRS)]
    with BirdieZMQ(model_tag="rnn", api=str(EXAMPLES / "gated_rnn.py"), device="cpu") as model:
        scores = [score for score, _ in model.loglikelihood(requests, disable_tqdm=True)]
        (repeated,) = model.loglikelihood(requests[:1], disable_tqdm=True)
        steps = model.get_model_info()["model_steps"]
    np.testing.assert_allclose(scores, [expected_score(*pair) for pair in PAIRS], atol=1e-4)
    assert repeated[0] == pytest.approx(scores[0], abs=1e-4)
    assert steps["tokens_computed"] < steps["tokens_requested"] / 4

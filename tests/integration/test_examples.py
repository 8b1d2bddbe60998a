"""The pages of examples/, through the whole path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lm_eval.api.instance import Instance

from harness_model import BirdieZMQ
from tests.integration.conftest import EXAMPLES

CONTEXT = "The mill of Oldbrook was built of grey stone. " * 4
PAIRS = [
    (f"{CONTEXT}Who built mill {number}?", f" {name}")
    for number in range(6)
    for name in ("Una", "Mira", "Tom", "Una's")
]


def test_a_recurrent_model_reads_what_is_shared_once_and_scores_as_if_alone(example: Callable[[str], Any]) -> None:
    page = example("gated_rnn")
    params = page.load_model("rnn").params

    def alone(context: str, continuation: str) -> float:
        tokens = list((context + continuation).encode())
        row = jnp.array([tokens[:-1]])
        hidden, _ = page.extend(params, row, jnp.array([row.shape[1]]), page.init_state(params, 1, row.shape[1]))
        scores = np.asarray(jax.nn.log_softmax(page.unembed(params, hidden[0])), np.float64)
        count = len(continuation.encode())
        return float(scores[-count:][np.arange(count), tokens[-count:]].sum())

    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(PAIRS)]
    with BirdieZMQ(model_tag="rnn", api=str(EXAMPLES / "gated_rnn.py"), device="cpu") as model:
        scores = [score for score, _ in model.loglikelihood(requests, disable_tqdm=True)]
        (again,) = model.loglikelihood(requests[:1], disable_tqdm=True)
        steps = model.get_model_info()["model_steps"]
    np.testing.assert_allclose(scores, [alone(*pair) for pair in PAIRS], atol=1e-4)
    assert again[0] == pytest.approx(scores[0], abs=1e-4)
    assert steps["tokens_computed"] < steps["tokens_requested"] / 4

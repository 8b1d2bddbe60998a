"""A vocabulary masked with minus infinity: the same scores, flags and texts as lm_eval's hf backend."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq.models import load_model
from harness_model import BirdieZMQ
from tests.instances import rolling_scores
from tests.parity.checkpoints import make_checkpoint
from tests.parity.conftest import hf, instances
from tests.parity.variants import VARIANTS

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

PAIRS = [("The capital of France is", answer) for answer in (" Paris", " Rome", " a town", " 42")]
TEXTS = ["A text with capitals.", "without any capital letter", "numbers, 1 and 2"]
PROMPTS = ["Count with me:", "the weather today"]


@pytest.mark.parametrize("engine", ["jax", "torch"])
def test_scores_and_texts_match_hf(engine: str, tmp_path: Path) -> None:
    import torch

    directory = make_checkpoint(VARIANTS["llama"], tmp_path / "model", tokenizer_kind="none")
    theirs = hf(directory)
    tokenizer, vocabulary = theirs.tokenizer, theirs.model.config.vocab_size
    mask = np.array([any(c.isupper() or c.isdigit() for c in tokenizer.decode([id])) for id in range(vocabulary)])
    unmasked: Any = None if engine == "torch" else load_model(str(directory), dtype="float32")

    def apply_mask(module: Any, arguments: Any, output: Any) -> Any:
        output.logits = output.logits.masked_fill(torch.from_numpy(mask), -math.inf)
        return output

    theirs.model.register_forward_hook(apply_mask)
    mine: Any = theirs.model
    if engine == "jax":
        mine = replace(
            unmasked,
            logits=None,
            unembed_part=None,
            unembed=lambda params, hidden: jnp.where(jnp.asarray(mask), -jnp.inf, unmasked.unembed(params, hidden)),
        )
    pairs, rolling = instances("loglikelihood", list(PAIRS)), instances("loglikelihood_rolling", [(t,) for t in TEXTS])
    greedy = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    prompts = instances("generate_until", [(prompt, dict(greedy)) for prompt in PROMPTS])

    with BirdieZMQ(model=mine, tokenizer=tokenizer, max_length=theirs.max_length, engine=engine) as lm:
        scores, expected = lm.loglikelihood(pairs, True), theirs.loglikelihood(pairs, True)
        rolled, expected_rolled = (rolling_scores(one.loglikelihood_rolling(rolling, True)) for one in (lm, theirs))
        texts = lm.generate_until(prompts, True)

    assert [score for score, _ in scores] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert [flag for _, flag in scores] == [flag for _, flag in expected]
    assert rolled == pytest.approx(expected_rolled, abs=1e-4)
    assert [math.isinf(score) for score, _ in scores] == [True, True, False, True]
    assert [math.isinf(score) for score in rolled] == [True, False, True]
    assert texts == [theirs.generate_until([prompt], True)[0] for prompt in prompts]

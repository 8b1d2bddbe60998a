"""The example of a PyTorch model with a state and trees, through broker and worker."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import EXAMPLES
from tests.integration.test_examples import PAIRS

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

PROMPTS = [*(context for context, _ in PAIRS[::4]), "Una", "x"]


def test_a_model_with_a_state_computes_shared_prefixes_once_with_equal_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import torch_state  # type: ignore[import-not-found]

    module = torch_state.load_model("seed-3").params.eval()

    def logprobs(tokens: list[int]) -> Any:
        row = torch.tensor([tokens])
        with torch.inference_mode():
            state = torch_state.init_state(module, 1, len(tokens))
            hidden, _ = torch_state.extend(module, row, torch.tensor([len(tokens)]), state)
            return torch_state.unembed(module, hidden[0]).double().log_softmax(dim=-1)

    def expected_score(context: str, continuation: str) -> float:
        tokens, count = list((context + continuation).encode()), len(continuation.encode())
        return float(logprobs(tokens[:-1])[-count:].gather(1, torch.tensor(tokens[-count:])[:, None]).sum())

    def expected_text(prompt: str) -> str:
        tokens = list(prompt.encode())
        for _ in range(6):
            tokens.append(int(logprobs(tokens)[-1].argmax()))
        return str(torch_state.load_tokenizer("").decode(tokens[-6:]))

    scored = [instance("loglikelihood", pair, number) for number, pair in enumerate(PAIRS)]
    settings = {"until": [], "max_gen_toks": 6}
    prompts = [instance("generate_until", (prompt, settings), number) for number, prompt in enumerate(PROMPTS)]
    api = str(EXAMPLES / "torch_state.py")
    with BirdieZMQ(model_tag="seed-3", api=api, engine="torch", device="cpu") as model:
        scores = [score for score, _ in model.loglikelihood(scored, disable_tqdm=True)]
        steps = model.get_model_info()["model_steps"]
        texts = model.generate_until(prompts, disable_tqdm=True)
    np.testing.assert_allclose(scores, [expected_score(*pair) for pair in PAIRS], atol=1e-4)
    assert texts == [expected_text(prompt) for prompt in PROMPTS]
    assert steps["tokens_computed"] < steps["tokens_requested"] / 4

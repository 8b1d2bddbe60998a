"""Every family agrees with lm_eval's hf backend on the same weights for each request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from birdie_zmq.models.registry import FAMILIES, WITH_TEXT_CONFIG
from tests.instances import rolling_scores
from tests.parity.checkpoints import DEMO, make_checkpoint
from tests.parity.conftest import TOLERANCE, assert_same, hf, instances, ours
from tests.parity.variants import MAX_LENGTH, VARIANTS

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

_TOKENIZER = Tokenizer.from_file(str(DEMO / "tokenizer.json"))

QUESTION = "Question: Where does Una live?\nAnswer:"
LONG = " ".join(f"Mira has {n} plums and Una has {n * 7 % 90} pears." for n in range(40))

MERGED = [
    ("Una lives in Fern", "ley, and so does Mira."),
    ("The pl", "ums are ripe"),
    ("naïve c", "afé"),
    ("Who is the nei", "ghbour of Una?"),
]
"""Context and continuation with a token across the boundary: encoded together they differ from encoded separately."""

HARD = [
    (QUESTION, " Fernley"),
    (QUESTION, " Oldbrook"),
    (QUESTION + "  ", "Fernley"),  # spaces that move to the continuation
    (QUESTION + "\n", "Fernley\n"),
    *MERGED,
    ("", "Una lives in Fernley."),  # no context
    ("", "<|bos|>Una"),  # a continuation that starts with the prefix token
    ("<|bos|>Una lives", " in Fernley"),  # a context with its own BOS, as chat templates write it
    ("東京 \u200d🦔 ÅÅ", " naïve\tcafé 🦔"),
    ("<|user|>Who is Una?<|eos|><|assistant|>", "A neighbour<|eos|>"),
    (LONG, " Fernley"),  # longer than the model
    (LONG[:2000], LONG[2000:2300]),
]

ROLLING = ["", "Una", QUESTION, LONG, "東京 🦔\n\n", "<|bos|>Una lives in Fernley."]

WINDOWS = [max(1, -(-len(_TOKENIZER.encode(text).ids) // MAX_LENGTH)) for text in ROLLING]

PROMPTS = [QUESTION, "Mira has", LONG, "<|bos|>Una"]


def test_merged_texts_have_a_token_across_the_boundary() -> None:
    def ids(text: str) -> list[int]:
        found: list[int] = _TOKENIZER.encode(text, add_special_tokens=False).ids
        return found

    for context, continuation in MERGED:
        assert ids(context + continuation)[: len(ids(context))] != ids(context)
    assert len(ids(LONG)) > 3 * MAX_LENGTH


def test_every_supported_family_is_compared() -> None:
    import transformers

    compared = {getattr(transformers, variant.config).model_type for variant in VARIANTS.values()}
    assert compared == {*FAMILIES, *WITH_TEXT_CONFIG}


def marked(name: str) -> Any:
    """Return a variant as a parameter; those beside the plain one of each family are marked."""
    return pytest.param(name, marks=() if name in {*FAMILIES, *WITH_TEXT_CONFIG} else pytest.mark.variant)


class TowersWithoutTimm:
    """transformers' AutoModel, but for the vision tower of Gemma 3n, which needs timm and torchvision.

    No text reaches that tower, and torchvision has no build for PyTorch's CPU wheels on PyPI.
    """

    @staticmethod
    def from_config(config: Any, **keywords: Any) -> Any:
        """Build a model from its configuration, or an empty module in place of the tower."""
        import torch
        import transformers

        if config.model_type == "gemma3n_vision":
            return torch.nn.Identity()
        return transformers.AutoModel.from_config(config, **keywords)


@pytest.mark.parametrize("name", [marked(name) for name in VARIANTS])
def test_scores_and_texts_match_hf(name: str, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = VARIANTS[name]
    monkeypatch.setattr("transformers.models.gemma3n.modeling_gemma3n.AutoModel", TowersWithoutTimm)
    # transformers 5.24 reads a field of Llama 4's output that its language model does not return.
    monkeypatch.setattr("transformers.modeling_outputs.MoeCausalLMOutputWithPast.image_outputs", None, raising=False)
    directory = make_checkpoint(variant, checkpoints / name)
    if variant.shard_bytes is not None:
        assert len(list(directory.glob("model-*.safetensors"))) > 1
    theirs = hf(directory, variant.auto_class, attn_implementation=variant.attention)
    pairs = instances("loglikelihood", list(HARD))
    texts = instances("loglikelihood_rolling", [(text,) for text in ROLLING])
    greedy = {"until": ["\n"], "max_gen_toks": 16, "do_sample": False}
    prompts = instances("generate_until", [(prompt, dict(greedy)) for prompt in PROMPTS])
    with ours(directory) as mine:
        assert_same(variant.family, theirs.loglikelihood(pairs, True), mine.loglikelihood(pairs, True), HARD)
        rolled = [(value, True) for value in rolling_scores(theirs.loglikelihood_rolling(texts, True))]
        rolled_here = [(value, True) for value in rolling_scores(mine.loglikelihood_rolling(texts, True))]
        assert_same(variant.family, rolled, rolled_here, ROLLING, WINDOWS)
        assert theirs.generate_until(prompts, True) == mine.generate_until(prompts, True)


def test_a_different_model_exceeds_the_tolerance(checkpoints: Path) -> None:
    """Even a small change, another scale of the rotary embedding, exceeds the tolerance by far."""
    directory = make_checkpoint(VARIANTS["llama"], checkpoints / "right")
    other = make_checkpoint(VARIANTS["llama_rope_linear"], checkpoints / "wrong")
    pairs = instances("loglikelihood", list(HARD))
    theirs = hf(directory).loglikelihood(pairs, True)
    with ours(other) as mine:
        gaps = [abs(a[0] - b[0]) for a, b in zip(theirs, mine.loglikelihood(pairs, True), strict=True)]
    assert max(gaps) > 100 * TOLERANCE

"""Tokenizers and the model_args that concern them: the same tokens and scores as lm_eval's hf backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from birdie_zmq.models import load_tokenizer
from tests.instances import rolling_scores
from tests.parity.checkpoints import make_checkpoint
from tests.parity.conftest import assert_same, hf, instances, ours
from tests.parity.test_families import HARD, LONG, PROMPTS, QUESTION, ROLLING, WINDOWS
from tests.parity.variants import VARIANTS

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>{% endif %}{{ greeting | default('') }}{% endif %}"
)


def checkpoint(directory: Path, tokenizer_kind: str, **tokenizer_config: Any) -> Path:
    """Create a Llama with a tokenizer of some kind."""
    made = make_checkpoint(VARIANTS["llama"], directory, tokenizer_kind=tokenizer_kind)
    path = made / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | tokenizer_config), encoding="utf-8")
    return made


def hf_can(directory: Path, context: str, continuation: str) -> bool:
    """Return whether hf can score a pair: it fails an assertion if the context has as many tokens as the joined text."""
    tokenizer = load_tokenizer(str(directory))
    bare = context.rstrip()
    return not bare or len(tokenizer.encode(context + continuation)) > len(tokenizer.encode(bare))


@pytest.mark.parametrize("tokenizer_kind", ["none", "bos", "bos_by_config", "not_bos_by_config", "metaspace"])
@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_scores_match_hf(tokenizer_kind: str, add_bos_token: bool | None, tmp_path: Path) -> None:
    config = {"bos_by_config": {"add_bos_token": True}, "not_bos_by_config": {"add_bos_token": False}}.get(
        tokenizer_kind, {}
    )
    made = {"bos_by_config": "none", "not_bos_by_config": "bos"}.get(tokenizer_kind, tokenizer_kind)
    directory = checkpoint(tmp_path / "model", made, **config)
    keywords = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
    texts = [pair for pair in HARD if hf_can(directory, *pair)]
    assert len(texts) >= 10
    pairs, rolling = (
        instances("loglikelihood", list(texts)),
        instances("loglikelihood_rolling", [(t,) for t in ROLLING]),
    )
    greedy = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    prompts = instances("generate_until", [(prompt, dict(greedy)) for prompt in PROMPTS])
    theirs = hf(directory, **keywords)
    with ours(directory, **keywords) as mine:
        assert_same("tokenizers", theirs.loglikelihood(pairs, True), mine.loglikelihood(pairs, True), texts)
        rolled = [(value, True) for value in rolling_scores(theirs.loglikelihood_rolling(rolling, True))]
        rolled_here = [(value, True) for value in rolling_scores(mine.loglikelihood_rolling(rolling, True))]
        # Other tokenizers split texts into more windows than these, which makes the tolerance stricter.
        assert_same("tokenizers", rolled, rolled_here, ROLLING, WINDOWS)
        for prompt, here in zip(prompts, mine.generate_until(prompts, True), strict=True):
            # One at a time: hf uses the first prompt to decide for the whole batch.
            assert theirs.generate_until([prompt], True) == [here]


@pytest.mark.parametrize("tokenizer_kind", ["none", "bos", "metaspace"])
@pytest.mark.parametrize("text", [*ROLLING, " two  spaces ", "line\r\n\ttab", "<|eos|>x<|bos|>", "x" * 300])
def test_tokens_match_transformers(tokenizer_kind: str, text: str, tmp_path: Path) -> None:
    import transformers

    directory = checkpoint(tmp_path / "model", tokenizer_kind)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    mine = load_tokenizer(str(directory))
    ids = theirs.encode(text)
    assert mine.encode(text) == ids
    assert mine.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
    assert mine.decode(ids) == theirs.decode(ids)
    assert mine.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


def test_prefix_token_and_max_length_match_hf(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "model", "none")
    texts = [("", " Fernley"), ("", "Una lives"), (LONG, " Fernley"), (LONG[:300], LONG[300:400])]
    requests = instances("loglikelihood", texts)
    rolling = instances("loglikelihood_rolling", [(LONG[:700],)])
    keywords = {"prefix_token_id": 7, "max_length": 60}
    theirs = hf(directory, **keywords)
    plain = hf(directory).loglikelihood(requests, True)
    with ours(directory, **keywords) as mine:
        expected = theirs.loglikelihood(requests, True)
        assert_same("arguments", expected, mine.loglikelihood(requests, True), texts)
        rolled, here = (rolling_scores(lm.loglikelihood_rolling(rolling, True)) for lm in (theirs, mine))
        assert_same("arguments", [(rolled[0], True)], [(here[0], True)], ["rolled"], [4])
    assert all(abs(a[0] - b[0]) > 0.01 for a, b in zip(plain, expected, strict=True))  # the arguments have an effect


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"enable_thinking": False},
        {"chat_template_args": {"greeting": "Well, "}},
        {"chat_template_args": {"greeting": "Well, ", "enable_thinking": True}, "enable_thinking": False},
    ],
)
def test_rendered_conversations_match_hf(keywords: dict[str, Any], tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "model", "none", chat_template=TEMPLATE)
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "Fernley"},
    ]
    theirs = hf(directory, **keywords)
    with ours(directory, **keywords) as mine:
        for prompted in (True, False):
            expected = theirs.apply_chat_template(history, add_generation_prompt=prompted)
            assert mine.apply_chat_template(history, add_generation_prompt=prompted) == expected


@pytest.mark.parametrize("end", ["a", " the", 4, "never"])
def test_removal_of_thinking_matches_hf(end: str | int, tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "model", "none")
    greedy = {"until": ["qqq"], "max_gen_toks": 24, "do_sample": False}
    prompts = instances("generate_until", [(prompt, dict(greedy)) for prompt in PROMPTS])
    theirs = hf(directory, think_end_token=end)
    plain = hf(directory).generate_until(prompts, True)
    with ours(directory, think_end_token=end) as mine:
        here = mine.generate_until(prompts, True)
    assert here == theirs.generate_until(prompts, True)
    if end == "a":
        assert here != plain  # something was removed


def test_generation_ends_at_eos_of_the_generation_config(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "model", "none")
    prompts = instances("generate_until", [(QUESTION, {"until": [], "max_gen_toks": 12, "do_sample": False})])
    (unended,) = hf(directory).generate_until(prompts, True)
    written = load_tokenizer(str(directory)).encode(unended)
    path = directory / "generation_config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | {"eos_token_id": [2, written[4]]}
    path.write_text(json.dumps(values), encoding="utf-8")
    (ended,) = hf(directory).generate_until(prompts, True)
    assert unended.startswith(ended[:-1])
    assert len(ended) < len(unended)
    with ours(directory) as mine:
        (here,) = mine.generate_until(prompts, True)
    # hf keeps an ordinary token that ended the text; both remove a special one, which real models have.
    assert ended.startswith(here)
    assert written[: len(load_tokenizer(str(directory)).encode(here))] == written[:4]

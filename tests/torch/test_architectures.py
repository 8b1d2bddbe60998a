"""The engine torch on models of many architectures, compared with plain calls of the model on one text at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.events import Answered
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.planning.execution_mode import TREES
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.engine.torch.backend import TorchBackend
from birdie_zmq.engine.torch.exact_rows import ExactRows
from birdie_zmq.models import transformers_masks, transformers_shared_prefix
from birdie_zmq.models.transformers_functions import StateFunctions
from birdie_zmq.models.transformers_model import build_model
from birdie_zmq.models.transformers_probe import probe
from birdie_zmq.types import GenerateWork, GenerationParams, LogLikelihoodWork, StepLimits
from tests.torch.architectures import ARCHITECTURES, make_model

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

IN_CI = ("mistral_window", "bloom", "mamba2")
"""What .ci/run tests too: trees with a window, states without trees, and a recurrence."""

NAMES = [name if name in IN_CI else pytest.param(name, marks=pytest.mark.variant) for name in ARCHITECTURES]

TOLERANCE = 5e-4
"""The largest difference of the log-likelihood of up to 100 tokens, in nats."""

MAX_LENGTH = 128
_FIRST_CHARACTER = 0x4E00


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute these tiny models in one thread, which is faster than to share their work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Characters:
    """A tokenizer whose tokens are single characters."""

    bos_token_id, eos_token_id = 1, None

    def encode(self, text: str) -> list[int]:
        return [ord(character) - _FIRST_CHARACTER for character in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(_FIRST_CHARACTER + token) for token in tokens)


CHARACTERS = Characters()


def texts_of(vocabulary: int) -> list[list[int]]:
    """Return ragged texts, many with shared prefixes of several lengths; some are prefixes of others, or equal."""
    random = np.random.default_rng(7)

    def draw(size: Any) -> list[int]:
        found: list[int] = random.integers(3, vocabulary, size=size).tolist()
        return found

    texts: list[list[int]] = []
    for prefix in (draw(45), draw(22), []):
        for _ in range(3):
            stem = prefix + draw(random.integers(2, 9))
            texts += [stem + draw(random.integers(1, 7)) for _ in range(3)]
            texts.append(stem)
    return [*texts, texts[0], draw(2), draw(MAX_LENGTH + 1)]  # the last token of a text is only scored


def plain(model: Any, text: Sequence[int]) -> Any:
    with torch.inference_mode():
        return model(torch.tensor([list(text)]), use_cache=False).logits[0].double().log_softmax(dim=-1)


def backend_of(model: Any, step_tokens: int) -> TorchBackend:
    backend = TorchBackend(resolve(build_model(model)), MAX_LENGTH)
    # Small steps, so that prefixes become states and texts are computed in chunks.
    backend.budget = replace(backend.budget, tokens=step_tokens, call_tokens=1)
    return backend


def answers(backend: TorchBackend, work: Any) -> list[Any]:
    evaluator = Evaluator(TokenizerAdapter(CHARACTERS), backend, MAX_LENGTH)
    found: dict[int, Any] = {}
    for event in evaluator.answer(work, StepLimits()):
        if isinstance(event, Answered):
            found |= dict(zip(event.indices, event.answers, strict=True))
    return [found[number] for number in range(len(work))]


def check_scores(model: Any, backends: Sequence[TorchBackend], rtol: float = 0) -> None:
    texts = texts_of(model.config.get_text_config().vocab_size)
    splits = [1 if number % 3 == 0 else max(1, len(text) - 3) for number, text in enumerate(texts)]
    work = LogLikelihoodWork(
        pairs=[
            (CHARACTERS.decode(text[:at]), CHARACTERS.decode(text[at:])) for text, at in zip(texts, splits, strict=True)
        ]
    )
    expected = []
    for text, at in zip(texts, splits, strict=True):
        logprobs = plain(model, text[:-1])
        targets = torch.tensor(text[at:])
        expected.append(float(logprobs[at - 1 :].gather(1, targets[:, None]).sum()))
    for backend in backends:
        for _ in range(2):  # the second time with cached states
            found = [loglikelihood for loglikelihood, _ in answers(backend, work)]
            np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=rtol)


def prompts_of(vocabulary: int) -> list[list[list[int]]]:
    """Return prompts with shared prefixes of several lengths, and prompts that all share a prefix that is held once."""
    random = np.random.default_rng(8)
    prefix = random.integers(3, vocabulary, size=70).tolist()
    return [
        texts_of(vocabulary)[:16:2],
        [prefix + random.integers(3, vocabulary, size=size).tolist() for size in (3, 9, 1, 14, 2)],
    ]


def check_texts(model: Any, backends: Sequence[TorchBackend], prompts: Sequence[list[int]], count: int = 8) -> None:
    settings = GenerationParams(max_gen_toks=count)
    work = GenerateWork(prompts=[CHARACTERS.decode(prompt) for prompt in prompts], settings=settings, keys=[])
    expected = []
    for prompt in prompts:
        text = list(prompt)
        for _ in range(count):
            text.append(int(plain(model, text)[-1].argmax()))
        expected.append(CHARACTERS.decode(text[len(prompt) :]))
    for backend in backends:
        backend.budget = replace(backend.budget, decoding_rows=3)  # fewer rows than prompts
        assert answers(backend, work) == expected


@pytest.mark.parametrize("name", NAMES)
def test_scores_and_texts_equal_those_of_plain_calls(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(name)
    with caplog.at_level(logging.INFO, logger="birdie_zmq"):  # pytest -rP shows which modes are on and off, and why
        backends = [backend_of(model, step_tokens) for step_tokens in (24, 1024)]

    check_scores(model, backends)
    for prompts in prompts_of(model.config.get_text_config().vocab_size):
        check_texts(model, backends, prompts)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.bfloat16, "llama"),
        pytest.param(torch.bfloat16, "gemma3", marks=pytest.mark.variant),
        pytest.param(torch.float16, "mixtral_window", marks=pytest.mark.variant),
    ],
)
def test_models_in_16_bits_are_scored_by_trees(dtype: Any, name: str) -> None:
    model = make_model(name).to(dtype)
    backend = backend_of(model, 24)
    assert backend.text_mode is TREES
    texts = texts_of(model.config.get_text_config().vocab_size)
    work = LogLikelihoodWork(pairs=[(CHARACTERS.decode(text[:-1]), CHARACTERS.decode(text[-1:])) for text in texts])
    expected = [float(plain(model, text[:-1])[-1, text[-1]]) for text in texts]
    np.testing.assert_allclose([score for score, _ in answers(backend, work)], expected, atol=0.3, rtol=0)


@pytest.mark.parametrize("name", ["mistral_window", pytest.param("gemma2", marks=pytest.mark.variant)])
def test_rows_that_are_decoded_hold_only_what_follows_a_shared_prefix(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []
    extend_after = StateFunctions.extend_after

    def noted(self: Any, module: Any, tokens: Any, counts: Any, state: Any, prefix: Any) -> Any:
        lengths.append((prefix["lengths"].tolist(), int(state["lengths"].max())))
        return extend_after(self, module, tokens, counts, state, prefix)

    monkeypatch.setattr(StateFunctions, "extend_after", noted)
    model = make_model(name)
    backend = backend_of(model, 1024)
    lengths.clear()  # those of the probe
    check_texts(model, [backend], prompts_of(model.config.get_text_config().vocab_size)[1])
    assert {prefix[0] for prefix, _ in lengths} == {70}
    assert max(own for _, own in lengths) < 14 + 8


def test_rows_at_the_maximum_length_leave_the_positions_of_padding_in_range() -> None:
    model = make_model("gpt2")  # it has an embedding for each position
    functions = build_model(model)
    assert functions.init_state is not None
    assert functions.extend is not None
    state = functions.init_state(model, 2, 256)
    text = torch.randint(3, 1000, (2, MAX_LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        _, state = functions.extend(model, text[:, : MAX_LENGTH - 1], torch.tensor([MAX_LENGTH - 1, 20]), state)
        rest = torch.stack([text[0].roll(1), text[1, 20:].repeat(2)[:MAX_LENGTH]])[:, :40]
        hidden, _ = functions.extend(model, rest, torch.tensor([1, 40]), state)
        expected = model(text[1:, :60]).logits[0, 20:].log_softmax(dim=-1)
        assert functions.unembed is not None
        found = functions.unembed(model, hidden[1]).log_softmax(dim=-1)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_a_wrong_mask_of_a_window_turns_trees_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(config: Any, kind: str, allowed: Any, queries: Any, keys: Any) -> Any:
        return allowed & (queries[:, :, None] - keys[:, None, :] <= config.sliding_window)  # one too many

    monkeypatch.setattr(transformers_masks, "_limited", limited)
    modes = probe(make_model("mistral_window"), MAX_LENGTH)
    assert not modes.has_trees
    assert "differ from those of a plain call" in modes.reasons["trees"]


def test_attention_that_does_not_read_the_shared_prefix_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = transformers_shared_prefix.attend

    def forgetful(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **others: Any) -> Any:
        mask = attention_mask.clone()
        mask[..., :3] = torch.finfo(mask.dtype).min
        return attend(module, query, key, value, mask, **others)

    monkeypatch.setattr(transformers_shared_prefix, "attend", forgetful)
    modes = probe(make_model("llama"), MAX_LENGTH)
    assert modes.has_trees
    assert not modes.shares_prefixes
    assert "differ from those of a plain call" in modes.reasons["shared prefixes"]


def test_a_window_that_the_code_does_not_read_from_its_configuration_turns_states_off() -> None:
    model = make_model("llama")
    model.config.sliding_window = 64  # longer than the texts of the probe, and not known to the code
    assert "changes nothing" in probe(model, MAX_LENGTH).reasons["states"]


def test_a_max_length_beyond_a_change_of_rope_has_each_text_computed_alone() -> None:
    model = make_model("llama_rope_dynamic")
    assert build_model(model).extend is not None
    longer = build_model(model, model.config.max_position_embeddings + 1)
    assert longer.extend is None
    assert isinstance(longer.hidden, ExactRows)


def test_a_model_that_ignores_its_context_turns_states_off() -> None:
    model = make_model("llama")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name:
                weight.zero_()
    assert "hides errors" in probe(model, MAX_LENGTH).reasons["states"]

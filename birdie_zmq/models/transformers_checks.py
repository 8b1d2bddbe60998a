"""The comparisons of the probe of a transformers model: its modes beside plain calls, for a few short texts.

A plain call computes one text at a time by the whole model, without a cache, a mask or positions.

Shape letters: n tokens of a text, v vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from birdie_zmq.engine.planning.prefix_tree import PrefixTree
from birdie_zmq.engine.planning.shape_buckets import Buckets, StepBudget
from birdie_zmq.engine.planning.steps import ScoredSequence, Step, Tree
from birdie_zmq.engine.planning.tree_planner import plan_trees
from birdie_zmq.models import transformers_functions as functions
from birdie_zmq.models.transformers_cache import State
from birdie_zmq.models.transformers_functions import StateFunctions
from birdie_zmq.models.transformers_masks import limits, rope_switch

_TOLERANCE = 1e-4
"""The largest difference of log-probabilities in float32, in nats."""

_HALF_TOLERANCE = 0.5
"""The same in a dtype of 16 bits, whose logits are apart by an eighth where they exceed 16."""

_LEAST_EFFECT = 20 * _TOLERANCE
"""If another token before changes no log-probability by this much, the probe would not see an error in a mask."""

_SHORT_LIMIT = 5
"""The length in tokens of a window or a chunk while the probe runs."""

_LENGTHS = (11, 5, 4, 6, 3, 7)
"""The lengths of the shared prefix and of the parts of texts after it."""


class _Differs(ValueError):
    """A mode does not give what a plain call gives."""


@dataclass(frozen=True)
class ComparedModel:
    """A module with the functions that are compared with it, and the largest difference in nats."""

    module: Any
    states: StateFunctions
    head: Callable[..., Any] | None
    tolerance: float

    def log_probabilities(self, hidden: Any) -> Any:
        """Return log-probabilities float32[n, v] by hidden states [n, d]."""
        assert self.head is not None
        return self.head(self.module, hidden).float().log_softmax(dim=-1)

    def compare(self, hidden: Any, text: Sequence[int], begin: int = 0) -> None:
        """Compare the hidden states of the tokens of a text after the first `begin` with a plain call.

        Raises:
            _Differs: They give other log-probabilities.
        """
        expected = plain_call(self.module, text)[begin : begin + len(hidden)]
        _compare(self.log_probabilities(hidden), expected, self.tolerance)

    def tensor(self, array: Any) -> Any:
        """Return an array as int64 on the model's device."""
        return torch.as_tensor(np.asarray(array), dtype=torch.int64, device=device_of(self.module))


@dataclass(frozen=True)
class ProbeTexts:
    """The texts of the probe, as tokens: a prefix, continuations of it in which two share a prefix, and another text."""

    prefix: list[int]
    continuations: list[list[int]]
    other: list[int]

    @classmethod
    def of(cls, vocab_size: int) -> ProbeTexts:
        """Return the texts for a vocabulary."""
        random = np.random.default_rng(0)
        prefix, stem, *parts, other = (random.integers(vocab_size, size=size).tolist() for size in _LENGTHS)
        return cls(prefix, [stem + parts[0], stem + parts[1], parts[2]], other)

    @property
    def whole(self) -> list[list[int]]:
        """All texts."""
        return [*(self.prefix + continuation for continuation in self.continuations), self.other]


def check_head(module: Any, head: Callable[..., Any]) -> None:
    """Compare a head with the logits of the model; they must be the same bits, where logits could be scaled or capped."""
    count = min(8, module.config.get_text_config().vocab_size)
    tokens = torch.arange(count, device=device_of(module))[None]
    made = head(module, functions.hidden(module, tokens)[0])
    if not torch.equal(made, functions.logits(module, tokens)[0]):
        raise _Differs("the hidden states do not determine the logits")


def check_padding(module: Any, max_length: int | None) -> None:
    """Check that tokens after a text change nothing, also where the text is long."""
    config = module.config.get_text_config()
    switch = rope_switch(config)
    if switch is not None and (max_length is None or max_length > switch):
        raise ValueError(f"RoPE computes texts of more than {switch} tokens in another way")
    texts = ProbeTexts.of(config.vocab_size).whole
    tokens = np.zeros((len(texts), max(map(len, texts)) + 4), np.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    with short_limits(module):
        found = functions.logits(module, torch.tensor(tokens, device=device_of(module))).float().log_softmax(dim=-1)
        for row, text in enumerate(texts):
            _compare(found[row, : len(text)], plain_call(module, text), tolerance_of(module))


def check_effect(module: Any, texts: ProbeTexts) -> float:
    """Check that an error in a mask would change log-probabilities by more than the tolerance; return by how much."""
    text = texts.whole[0]
    changed = [*text[:-3], (text[-3] + 1) % (max(text) + 1), *text[-2:]]
    effect = float((plain_call(module, text)[-1] - plain_call(module, changed)[-1]).abs().max())
    if not effect > _LEAST_EFFECT:
        raise ValueError(
            f"another token before changes no log-probability by more than {effect:.1e}, which hides errors"
        )
    return effect


def check_limit(module: Any, texts: ProbeTexts, unlimited: Any) -> None:
    """Check that the model's code reads the window or the chunk that the probe has made short."""
    effect = float((plain_call(module, texts.whole[0]) - unlimited).abs().max())
    if not effect > _LEAST_EFFECT:
        raise ValueError("a shorter window or chunk of attention changes nothing, so longer texts cannot be probed")


def check_state(model: ComparedModel, texts: ProbeTexts) -> None:
    """Extend rows of different lengths by several tokens, by none and by one, and copies of them of one length."""
    rows = texts.whole
    state = model.states.init_state(model.module, len(rows), 64)
    begins = [0] * len(rows)
    for counts in ([11, 5, 3, 7], [0, 1, 9, 0], [2, 1, 1, 0], [1, 1, 1, 0]):
        state = _extend_and_compare(model, rows, state, begins, counts)
        begins = [begin + count for begin, count in zip(begins, counts, strict=True)]
    parents = [2, 0, 0]
    forked = _take(state, model.tensor(parents))
    rows, begins = [rows[row] for row in parents], [begins[row] for row in parents]
    counts = [min(4, len(row) - begin) for row, begin in zip(rows, begins, strict=True)]
    _extend_and_compare(model, rows, forked, begins, [*counts[:2], counts[2] - 1])
    single = _take(state, model.tensor(parents[1:]))  # one token each, at the same position
    _extend_and_compare(model, rows[1:], single, begins[1:], [1, 1])


def _extend_and_compare(
    model: ComparedModel, rows: Sequence[list[int]], state: State, begins: Sequence[int], counts: Sequence[int]
) -> State:
    tokens = np.zeros((len(rows), max(counts) + (2 if max(counts) > 1 else 0)), np.int64)
    for number, (row, begin, count) in enumerate(zip(rows, begins, counts, strict=True)):
        tokens[number, :count] = row[begin : begin + count]
    hidden, state = model.states.extend(model.module, model.tensor(tokens), model.tensor(counts), state)
    for number, (row, begin, count) in enumerate(zip(rows, begins, counts, strict=True)):
        model.compare(hidden[number, :count], row, begin)
    return state


def check_trees(model: ComparedModel, texts: ProbeTexts) -> None:
    """Compute trees without and with a state, append paths to states, and extend these."""
    cases: tuple[tuple[list[int], list[list[int]]], ...] = (
        ([], texts.whole),
        ([], [texts.whole[0]]),  # one text is computed without a mask
        (texts.prefix, texts.continuations),
    )
    for prefix, given in cases:
        step = _tree_of(given)
        assert isinstance(step.kind, Tree)
        state = None
        if prefix:
            state = model.states.init_state(model.module, 1, 64)
            length = model.tensor([len(prefix)])
            _, state = model.states.extend(model.module, model.tensor([[*prefix, 0, 0]]), length, state)
        tokens, depths, ends = (model.tensor(array) for array in (step.tokens, step.kind.depths, step.kind.ends))
        hidden, entries = model.states.prefill(model.module, tokens, depths, ends, state)
        for owner, continuation in enumerate(given):
            at = step.owners == owner
            found = hidden[model.tensor(step.rows[at]), model.tensor(step.positions[at])]
            text = prefix + continuation
            model.compare(found, text, len(prefix))
            path = model.tensor(step.rows[at] * step.tokens.shape[1] + step.positions[at])[:-1]
            one = model.states.init_state(model.module, 1, 64) if state is None else copy.deepcopy(state)
            one = model.states.append(model.module, one, entries, path, len(path))
            last, _ = model.states.extend(model.module, model.tensor([text[-1:]]), model.tensor([1]), one)
            model.compare(last[0], text, len(text) - 1)


def check_shared_prefix(model: ComparedModel, texts: ProbeTexts) -> None:
    """Extend rows after a prefix that is held once: by several tokens, by none, and by one."""
    prefix, rows = texts.prefix, texts.continuations
    shared = model.states.init_state(model.module, 1, 64)
    _, shared = model.states.extend(model.module, model.tensor([prefix]), model.tensor([len(prefix)]), shared)
    state = model.states.init_state(model.module, len(rows), 32)
    begins = [0] * len(rows)
    for counts in ([3, 1, 0], [1, 1, 1], [1, 0, 2]):
        tokens = np.zeros((len(rows), max(counts)), np.int64)
        for number, (row, begin, count) in enumerate(zip(rows, begins, counts, strict=True)):
            tokens[number, :count] = row[begin : begin + count]
        given = (model.tensor(tokens), model.tensor(counts), state, shared)
        hidden, state = model.states.extend_after(model.module, *given)
        for number, (row, begin, count) in enumerate(zip(rows, begins, counts, strict=True)):
            model.compare(hidden[number, :count], prefix + row, len(prefix) + begin)
        begins = [begin + count for begin, count in zip(begins, counts, strict=True)]


def _tree_of(texts: Sequence[list[int]]) -> Step:
    """Return a step of trees with a position for each token of each text."""
    items = [ScoredSequence(np.array([*text, 0], np.int32), len(text)) for text in texts]
    buckets = Buckets(64, 0, StepBudget(tokens=64))
    (step,) = plan_trees(PrefixTree(items), buckets, {})
    return step


def plain_call(module: Any, text: Sequence[int]) -> Any:
    """Return the log-probabilities float32[n, v] after each token of a text, by a plain call."""
    tokens = torch.tensor([list(text)], device=device_of(module))
    return functions.logits(module, tokens)[0].float().log_softmax(dim=-1)


def _compare(found: Any, expected: Any, tolerance: float) -> None:
    if not len(expected):
        return
    difference = float((found - expected).abs().nan_to_num(nan=float("inf")).max())
    both_masked = torch.isneginf(found) & torch.isneginf(expected)
    if both_masked.any():
        difference = float((found - expected).masked_fill(both_masked, 0).abs().nan_to_num(nan=float("inf")).max())
    if not difference <= tolerance:
        raise _Differs(f"log-probabilities differ from those of a plain call by {difference:.1e}")


@contextlib.contextmanager
def short_limits(*modules: Any) -> Iterator[None]:
    """Make the window and the chunk of attention short for as long as the context lasts."""
    configs = {
        id(config): config
        for module in modules
        for owner in (module, functions.backbone(module))
        for config in (owner.config, owner.config.get_text_config())
    }
    before = [(config, name, value) for config in configs.values() for name, value in limits(config).items()]
    try:
        for config, name, _ in before:
            setattr(config, name, _SHORT_LIMIT)
        yield
    finally:
        for config, name, value in before:
            setattr(config, name, value)


def _take(state: State, rows: Any) -> State:
    layers = [{name: tensor[rows] for name, tensor in tensors.items()} for tensors in state["layers"]]
    return {"lengths": state["lengths"][rows], "layers": layers}


def tolerance_of(module: Any) -> float:
    """Return the largest difference of log-probabilities for the dtypes of a model, in nats."""
    dtypes = {weight.dtype for weight in module.parameters()}
    return _TOLERANCE if dtypes == {torch.float32} else _HALF_TOLERANCE


def device_of(module: Any) -> torch.device:
    """Return the device of a model."""
    device: torch.device = next(module.parameters()).device
    return device

"""The probe of a transformers model while it is loaded: which of its modes give what a plain call gives.

Nothing is assumed about a model's code. Each mode is computed for a few short texts and compared with calls of the whole
model on one text at a time, without a cache, a mask or positions. A mode that differs is off, and so is one that the probe
cannot judge. A sliding window, or a chunk of attention, is made shorter than the texts for as long as the probe runs, so
that an error in its mask shows.

Shape letters: n tokens of a text, v vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from birdie_zmq.engine.host_memory import host_free_bytes
from birdie_zmq.engine.planning.prefix_tree import PrefixTree
from birdie_zmq.engine.planning.shape_buckets import Buckets, StepBudget
from birdie_zmq.engine.planning.steps import ScoredSequence, Step, Tree
from birdie_zmq.engine.planning.tree_planner import plan_trees
from birdie_zmq.models import transformers_functions as functions
from birdie_zmq.models.transformers_cache import CacheLayout, State, empty_cache, layout_of
from birdie_zmq.models.transformers_functions import StateFunctions
from birdie_zmq.models.transformers_masks import LIMITED, MaskKinds, limits, mask_kinds, rope_switch, unknown_limits

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


@dataclass
class Modes:
    """What a model can be computed by.

    Attributes:
        head: The function from hidden states to logits; None if logits can only be computed for whole rows.
        states: The functions with a state; None without one.
        has_trees: Whether these compute trees.
        takes_padding: Whether a text has the same log-probabilities if other tokens come after it. If not, each text is
            computed alone.
        reasons: For each mode that is off, by its name, why.
    """

    head: Callable[..., Any] | None = None
    states: StateFunctions | None = None
    has_trees: bool = False
    takes_padding: bool = True
    reasons: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """Return which modes are on and off, for the log."""
        modes = {"head": self.head, "padding": self.takes_padding, "states": self.states, "trees": self.has_trees}
        on = [name for name, given in modes.items() if given]
        off = [f"{name} ({reason})" for name, reason in self.reasons.items()]
        return f"on: {', '.join(on) or 'none'}; off: {', '.join(off) or 'none'}"


class _Differs(ValueError):
    """A mode does not give what a plain call gives."""


def probe(module: Any, max_length: int | None) -> Modes:
    """Find out by which modes a causal language model in evaluation mode can be computed.

    Args:
        module: The model.
        max_length: The maximum length of a row in tokens; None if it is not known.
    """
    modes = Modes()
    with torch.inference_mode():
        exact = _in_float32(module)
        for head in (functions.unembed, functions.unembed_by_model):
            reason = _reason(lambda head=head: _check_head(module, head))  # type: ignore[misc]
            if reason is None:
                modes.head = head
                break
        if modes.head is None:
            modes.reasons["head"] = str(reason)
        reason = _reason(lambda: _check_padding(exact, max_length))
        if reason is not None:
            modes.takes_padding = False
            modes.reasons["padding"] = reason
        if modes.reasons:
            modes.reasons |= {"states": "they need these", "trees": "they need these"}
        else:
            _probe_states(module, exact, modes)
    return modes


def _probe_states(module: Any, exact: Any, modes: Modes) -> None:
    config = module.config.get_text_config()
    try:
        unknown = unknown_limits(config)
        if unknown:
            raise ValueError(f"its configuration has {', '.join(unknown)}, whose masks are not known here")
        if "cache" not in inspect.signature(functions.backbone(module).forward).parameters:
            raise ValueError("its code takes no cache")
        layout = _find_layout(module)
        texts = _Texts.of(config.vocab_size)
        unlimited = _plain(exact, texts.whole[0])
        with _short_limits(module, exact):
            _check_effect(exact, texts)
            if set(mask_kinds(config).kinds) & LIMITED:
                _check_limit(exact, texts, unlimited)
    except Exception as error:  # noqa: BLE001 - code of any model: the mode is off
        modes.reasons |= {"states": _first_line(error), "trees": "no states"}
        return
    with _short_limits(module, exact):
        check = _Check(module, exact, modes, texts)
        kinds, reason = _kinds(module, layout)
        if kinds is not None:
            masked = StateFunctions(layout, kinds)
            reason = check.agrees(masked, _check_state)
            if reason is None:
                modes.states = masked
                reason = check.agrees(masked, _check_trees)
                modes.has_trees = reason is None
        if modes.states is None:
            grouped = StateFunctions(layout, None)
            failed = check.agrees(grouped, _check_state)
            if failed is None:
                modes.states = grouped
            else:
                modes.reasons["states"] = failed
    if not modes.has_trees:
        modes.reasons["trees"] = str(reason)


def _kinds(module: Any, layout: CacheLayout) -> tuple[MaskKinds | None, str | None]:
    """Return the masks that a model takes, or None and why it takes none."""
    parameters = inspect.signature(functions.backbone(module).forward).parameters
    if layout.is_recurrent:
        return None, "it has recurrent layers"
    if not {"attention_mask", "position_ids"} <= set(parameters):
        return None, "its code takes no positions"
    return mask_kinds(module.config.get_text_config()), None


@dataclass(frozen=True)
class _Check:
    """Compares functions with plain calls, in float32 and in the model's own dtype."""

    module: Any
    exact: Any
    modes: Modes
    texts: _Texts

    def agrees(self, given: StateFunctions, check: Callable[..., None]) -> str | None:
        """Return None if the functions agree, else why not."""
        return _reason(lambda: self._run(given, check))

    def _run(self, given: StateFunctions, check: Callable[..., None]) -> None:
        if self.exact is not self.module:
            layout = _find_layout(self.exact)
            check(_Model(self.exact, StateFunctions(layout, given.kinds), self.modes.head), self.texts)
        check(_Model(self.module, given, self.modes.head), self.texts)


@dataclass(frozen=True)
class _Model:
    """A module with the functions that are compared with it."""

    module: Any
    states: StateFunctions
    head: Callable[..., Any] | None

    def log_probabilities(self, hidden: Any) -> Any:
        """Return log-probabilities float32[n, v] by hidden states [n, d]."""
        assert self.head is not None
        return self.head(self.module, hidden).float().log_softmax(dim=-1)

    def compare(self, hidden: Any, text: Sequence[int], begin: int = 0) -> None:
        """Compare the hidden states of the tokens of a text after the first `begin` with a plain call.

        Raises:
            _Differs: They give other log-probabilities.
        """
        expected = _plain(self.module, text)[begin : begin + len(hidden)]
        _compare(self.log_probabilities(hidden), expected, _tolerance(self.module))

    def tensor(self, array: Any) -> Any:
        """Return an array as int64 on the model's device."""
        return torch.as_tensor(np.asarray(array), dtype=torch.int64, device=_device(self.module))


@dataclass(frozen=True)
class _Texts:
    """The texts of the probe, as tokens: a prefix, continuations of it in which two share a prefix, and another text."""

    prefix: list[int]
    continuations: list[list[int]]
    other: list[int]

    @classmethod
    def of(cls, vocab_size: int) -> _Texts:
        random = np.random.default_rng(0)
        prefix, stem, *parts, other = (random.integers(vocab_size, size=size).tolist() for size in _LENGTHS)
        return cls(prefix, [stem + parts[0], stem + parts[1], parts[2]], other)

    @property
    def whole(self) -> list[list[int]]:
        """All texts."""
        return [*(self.prefix + continuation for continuation in self.continuations), self.other]


# --- Checks ----------------------------------------------------------------------------------------------------------


def _check_head(module: Any, head: Callable[..., Any]) -> None:
    """Compare a head with the logits of the model; they must be the same bits, where logits could be scaled or capped."""
    count = min(8, module.config.get_text_config().vocab_size)
    tokens = torch.arange(count, device=_device(module))[None]
    made = head(module, functions.hidden(module, tokens)[0])
    if not torch.equal(made, functions.logits(module, tokens)[0]):
        raise _Differs("the hidden states do not determine the logits")


def _check_padding(module: Any, max_length: int | None) -> None:
    """Check that tokens after a text change nothing, also where the text is long."""
    config = module.config.get_text_config()
    switch = rope_switch(config)
    if switch is not None and (max_length is None or max_length > switch):
        raise ValueError(f"RoPE computes texts of more than {switch} tokens in another way")
    texts = _Texts.of(config.vocab_size).whole
    tokens = np.zeros((len(texts), max(map(len, texts)) + 4), np.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    with _short_limits(module):
        found = functions.logits(module, torch.tensor(tokens, device=_device(module))).float().log_softmax(dim=-1)
        for row, text in enumerate(texts):
            _compare(found[row, : len(text)], _plain(module, text), _tolerance(module))


def _check_effect(module: Any, texts: _Texts) -> None:
    """Check that an error in a mask would change log-probabilities by more than the tolerance."""
    text = texts.whole[0]
    changed = [*text[:-3], (text[-3] + 1) % (max(text) + 1), *text[-2:]]
    effect = float((_plain(module, text)[-1] - _plain(module, changed)[-1]).abs().max())
    if not effect > _LEAST_EFFECT:
        raise ValueError(
            f"another token before changes no log-probability by more than {effect:.1e}, which hides errors"
        )


def _check_limit(module: Any, texts: _Texts, unlimited: Any) -> None:
    """Check that the model's code reads the window or the chunk that the probe has made short."""
    effect = float((_plain(module, texts.whole[0]) - unlimited).abs().max())
    if not effect > _LEAST_EFFECT:
        raise ValueError("a shorter window or chunk of attention changes nothing, so longer texts cannot be probed")


def _check_state(model: _Model, texts: _Texts) -> None:
    """Extend rows of different lengths by several tokens, by none and by one, and copies of them."""
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


def _extend_and_compare(
    model: _Model, rows: Sequence[list[int]], state: State, begins: Sequence[int], counts: Sequence[int]
) -> State:
    tokens = np.zeros((len(rows), max(counts) + (2 if max(counts) > 1 else 0)), np.int64)
    for number, (row, begin, count) in enumerate(zip(rows, begins, counts, strict=True)):
        tokens[number, :count] = row[begin : begin + count]
    hidden, state = model.states.extend(model.module, model.tensor(tokens), model.tensor(counts), state)
    for number, (row, begin, count) in enumerate(zip(rows, begins, counts, strict=True)):
        model.compare(hidden[number, :count], row, begin)
    return state


def _check_trees(model: _Model, texts: _Texts) -> None:
    """Compute trees without and with a state, append paths to states, and extend these."""
    for prefix, step in (([], _tree_of(texts.whole)), (texts.prefix, _tree_of(texts.continuations))):
        assert isinstance(step.kind, Tree)
        state = None
        if prefix:
            state = model.states.init_state(model.module, 1, 64)
            length = model.tensor([len(prefix)])
            _, state = model.states.extend(model.module, model.tensor([[*prefix, 0, 0]]), length, state)
        tokens, depths, ends = (model.tensor(array) for array in (step.tokens, step.kind.depths, step.kind.ends))
        hidden, entries = model.states.prefill(model.module, tokens, depths, ends, state)
        for owner, continuation in enumerate(texts.continuations if prefix else texts.whole):
            at = step.owners == owner
            found = hidden[model.tensor(step.rows[at]), model.tensor(step.positions[at])]
            text = prefix + continuation
            model.compare(found, text, len(prefix))
            path = model.tensor(step.rows[at] * step.tokens.shape[1] + step.positions[at])[:-1]
            one = model.states.init_state(model.module, 1, 64) if state is None else copy.deepcopy(state)
            one = model.states.append(model.module, one, entries, path, len(path))
            last, _ = model.states.extend(model.module, model.tensor([text[-1:]]), model.tensor([1]), one)
            model.compare(last[0], text, len(text) - 1)


def _tree_of(texts: Sequence[list[int]]) -> Step:
    """Return a step of trees with a position for each token of each text."""
    items = [ScoredSequence(np.array([*text, 0], np.int32), len(text)) for text in texts]
    buckets = Buckets(64, 0, StepBudget(tokens=64))
    (step,) = plan_trees(PrefixTree(items), buckets, {})
    return step


def _plain(module: Any, text: Sequence[int]) -> Any:
    """Return the log-probabilities float32[n, v] after each token of a text, by a plain call."""
    tokens = torch.tensor([list(text)], device=_device(module))
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


# --- The model -------------------------------------------------------------------------------------------------------


def _find_layout(module: Any) -> CacheLayout:
    cache = empty_cache(module.config)
    functions.backbone(module)(
        torch.zeros((1, 2), dtype=torch.int64, device=_device(module)), cache=cache, use_cache=True
    )
    return layout_of(cache)


def _in_float32(module: Any) -> Any:
    """Return a copy of a model in float32 if that fits into memory; else, or if it is float32, the model itself."""
    weights = list(module.parameters())
    if all(weight.dtype == torch.float32 for weight in weights) or getattr(module, "is_quantized", False):
        return module
    needed = sum(4 * weight.numel() for weight in weights)
    device = _device(module)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_free_bytes()
    return copy.deepcopy(module).float() if free is not None and 2 * needed < free else module


@contextlib.contextmanager
def _short_limits(*modules: Any) -> Iterator[None]:
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


def _reason(check: Callable[[], None]) -> str | None:
    """Run a check, and return why it failed."""
    try:
        check()
    except Exception as error:  # noqa: BLE001 - code of any model: the mode is off
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0][:200]
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _tolerance(module: Any) -> float:
    dtypes = {weight.dtype for weight in module.parameters()}
    return _TOLERANCE if dtypes == {torch.float32} else _HALF_TOLERANCE


def _device(module: Any) -> torch.device:
    device: torch.device = next(module.parameters()).device
    return device

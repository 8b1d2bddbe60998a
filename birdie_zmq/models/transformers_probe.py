"""The probe of a transformers model while it is loaded: which of its modes give what a plain call gives.

Nothing is assumed about a model's code. Each mode is compared with plain calls (`transformers_checks`). A mode that differs
is off, and so is one that the probe cannot judge. A sliding window, or a chunk of attention, is made shorter than the texts
for as long as the probe runs, so that an error in its mask shows.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from birdie_zmq.engine.host_memory import host_free_bytes
from birdie_zmq.models import transformers_checks as checks
from birdie_zmq.models import transformers_functions as functions
from birdie_zmq.models.transformers_cache import CacheLayout, empty_cache, layout_of
from birdie_zmq.models.transformers_checks import (
    ComparedModel,
    ProbeTexts,
    device_of,
    plain_call,
    short_limits,
    tolerance_of,
)
from birdie_zmq.models.transformers_functions import StateFunctions
from birdie_zmq.models.transformers_masks import LIMITED, MaskKinds, mask_kinds, unknown_limits

_LEAST_EFFECT_TO_TOLERANCE = 4
"""Where a model cannot be compared in float32, an error must show by this many times the tolerance."""


@dataclass
class Modes:
    """What a model can be computed by.

    Attributes:
        head: The function from hidden states to logits; None if logits can only be computed for whole rows.
        states: The functions with a state; None without one.
        has_trees: Whether these compute trees.
        shares_prefixes: Whether rows that are decoded can come after a prefix that is held once.
        takes_padding: Whether a text has the same log-probabilities if other tokens come after it. If not, each text is
            computed alone.
        reasons: For each mode that is off, by its name, why.
    """

    head: Callable[..., Any] | None = None
    states: StateFunctions | None = None
    has_trees: bool = False
    shares_prefixes: bool = False
    takes_padding: bool = True
    reasons: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """Return which modes are on and off, for the log."""
        modes = {"head": self.head, "padding": self.takes_padding, "states": self.states, "trees": self.has_trees}
        modes["shared prefixes"] = self.shares_prefixes
        on = [name for name, given in modes.items() if given]
        off = [f"{name} ({reason})" for name, reason in self.reasons.items()]
        return f"on: {', '.join(on) or 'none'}; off: {', '.join(off) or 'none'}"


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
            reason = _reason(lambda head=head: checks.check_head(module, head))  # type: ignore[misc]
            if reason is None:
                modes.head = head
                break
        if modes.head is None:
            modes.reasons["head"] = str(reason)
        reason = _reason(lambda: checks.check_padding(exact, max_length))
        if reason is not None:
            modes.takes_padding = False
            modes.reasons["padding"] = reason
        if modes.reasons:
            modes.reasons |= dict.fromkeys(("states", "trees", "shared prefixes"), "they need these")
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
        texts = ProbeTexts.of(config.vocab_size)
        unlimited = plain_call(exact, texts.whole[0])
        with short_limits(module, exact):
            effect = checks.check_effect(exact, texts)
            if set(mask_kinds(config).kinds) & LIMITED:
                checks.check_limit(exact, texts, unlimited)
    except Exception as error:  # noqa: BLE001 - code of any model: the mode is off
        modes.reasons |= {"states": _first_line(error), "trees": "no states", "shared prefixes": "no states"}
        return
    unshared: str | None = "no trees"
    with short_limits(module, exact):
        check = _Check(module, exact, modes, texts, effect)
        kinds, reason = _kinds(module, layout)
        if kinds is not None:
            masked = StateFunctions(layout, kinds)
            reason = check.agrees(masked, checks.check_state)
            if reason is None:
                modes.states = masked
                reason = check.agrees(masked, checks.check_trees)
                modes.has_trees = reason is None
                if modes.has_trees:
                    unshared = check.agrees(masked, checks.check_shared_prefix)
                    modes.shares_prefixes = unshared is None
        if modes.states is None:
            grouped = StateFunctions(layout, None)
            failed = check.agrees(grouped, checks.check_state)
            if failed is None:
                modes.states = grouped
            else:
                modes.reasons["states"] = failed
    if not modes.has_trees:
        modes.reasons["trees"] = str(reason)
    if unshared is not None:
        modes.reasons["shared prefixes"] = unshared


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
    """Compares functions with plain calls, in float32 and in the model's own dtype.

    Attributes:
        module: The model.
        exact: A copy of it in float32; the model itself without one.
        modes: What is known of it.
        texts: The texts.
        effect: The change of a log-probability by another token before, in nats.
    """

    module: Any
    exact: Any
    modes: Modes
    texts: ProbeTexts
    effect: float

    def agrees(self, given: StateFunctions, check: Callable[..., None]) -> str | None:
        """Return None if the functions agree, else why not."""
        return _reason(lambda: self._run(given, check))

    def _run(self, given: StateFunctions, check: Callable[..., None]) -> None:
        if self.exact is not self.module:
            layout = _find_layout(self.exact)
            exact = StateFunctions(layout, given.kinds)
            check(ComparedModel(self.exact, exact, self.modes.head, tolerance_of(self.exact)), self.texts)
        tolerance = tolerance_of(self.module)
        if self.exact is self.module:  # without a copy in float32, this comparison alone must show an error in a mask
            tolerance = min(tolerance, self.effect / _LEAST_EFFECT_TO_TOLERANCE)
        check(ComparedModel(self.module, given, self.modes.head, tolerance), self.texts)


def _find_layout(module: Any) -> CacheLayout:
    cache = empty_cache(module.config)
    functions.backbone(module)(
        torch.zeros((1, 2), dtype=torch.int64, device=device_of(module)), cache=cache, use_cache=True
    )
    return layout_of(cache)


def _in_float32(module: Any) -> Any:
    """Return a copy of a model in float32 if that fits into memory; else, or if it is float32, the model itself."""
    weights = list(module.parameters())
    if all(weight.dtype == torch.float32 for weight in weights) or getattr(module, "is_quantized", False):
        return module
    needed = sum(4 * weight.numel() for weight in weights)
    device = device_of(module)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_free_bytes()
    return copy.deepcopy(module).float() if free is not None and 2 * needed < free else module


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

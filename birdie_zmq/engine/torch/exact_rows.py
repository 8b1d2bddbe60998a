"""Rows that are computed one at a time and without padding, for models in which later tokens change earlier ones.

Some models are not causal, and the RoPE of some depends on the length of the call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from birdie_zmq.engine.planning.steps import Dense, Step


@dataclass(frozen=True)
class ExactRows:
    """Marks a function from tokens [b, t] to logits or hidden states that is right only for whole texts without padding."""

    function: Callable[..., Any]

    def __call__(self, params: Any, tokens: Any) -> Any:
        """Call the function."""
        return self.function(params, tokens)


def separate(step: Step) -> Step:
    """Return a step of whole rows with a row for each text, where a row holds a text and prefixes of it that are texts."""
    ends = np.zeros(int(step.owners.max(initial=-1)) + 1, np.int32)
    np.maximum.at(ends, step.owners, step.positions)
    texts, rows = np.unique(np.stack([step.rows, ends[step.owners]], axis=1), axis=0, return_inverse=True)
    tokens = step.tokens[texts[:, 0]]
    return replace(step, tokens=tokens, kind=Dense(), rows=rows.reshape(-1).astype(np.int32))


def compute(call: Callable[[Any], Any], step: Step) -> Any:
    """Return the outputs [b, t, …] of a step that `separate` returned; those after the end of a text are zero.

    Args:
        call: Returns the outputs of tokens int32[1, n].
        step: The step.
    """
    outputs = []
    for row, tokens in enumerate(step.tokens):
        length = int(step.positions[step.rows == row].max()) + 1
        output = call(tokens[None, :length])[0]
        outputs.append(torch.nn.functional.pad(output, (0, 0, 0, len(tokens) - length)))
    return torch.stack(outputs)

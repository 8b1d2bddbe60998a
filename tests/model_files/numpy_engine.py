"""An engine in one file for tests, for models in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from birdie_zmq.engine.model_api import LoadedModel
from birdie_zmq.engine.numpy.row_backend import RowBackend
from birdie_zmq.engine.planning.steps import Tokens


class NumpyBackend(RowBackend):
    """A backend that calls NumPy functions."""

    name = "numpy"

    def forward(self, tokens: Tokens) -> Any:
        return self.call(tokens)

    def logits_at(self, output: Any, rows: Tokens, positions: Tokens) -> Any:
        at = output[rows, positions]
        if self.unembed is not None:
            at = self.unembed(self.params, at)
        return at[:, : self.vocab_size].astype(np.float32)


def make_backend(model: LoadedModel, max_length: int) -> NumpyBackend:
    return NumpyBackend(model, max_length)

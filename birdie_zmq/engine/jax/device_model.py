"""A model on its devices: its functions, its params and its compiled executables."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from birdie_zmq.engine.jax.executables import Executables
from birdie_zmq.engine.jax.fixed_settings import users_settings
from birdie_zmq.engine.jax.sharding import MeshSharding
from birdie_zmq.engine.model_api import Function, Model


def with_users_settings(function: Function) -> Function:
    """Return a function of a model that runs under the user's own settings of JAX."""

    @functools.wraps(function, updated=())
    def call(*arguments: Any, **keywords: Any) -> Any:
        with users_settings():
            return function(*arguments, **keywords)

    return call


@dataclass
class DeviceModel:
    """A model on its devices.

    Attributes:
        functions: The model's functions; their first argument is `params`, not the model's own.
        params: The params, on the devices.
        executables: The compiled executables.
        vocab_size: The number of tokens; 0 if it is not known.
    """

    functions: Model
    params: Any
    executables: Executables
    vocab_size: int = 0

    @property
    def sharding(self) -> MeshSharding:
        """How arguments are sharded over devices."""
        return self.executables.sharding

"""The keys of a GGUF file: typed, and with errors that name a key which is missing or has no known effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WITHOUT_EFFECT = (
    "attention.layer_norm_epsilon",  # is read by families with such norms
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",  # is checked against the shape of the weights
    "attention.value_length_swa",
    "expert_used_count",
    "pooling_type",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "use_parallel_residual",  # follows from the tensors; GPT-NeoX's is read
    "vocab_size",  # is that of the embedding
)
"""Keys of an architecture that do not change its scores."""


class GgufMetadata:
    """The keys and the tensor shapes of a GGUF file.

    Every method that reads a key raises ValueError, naming the file and the key, if the key is missing and has no
    default, or if its value has the wrong type.

    Args:
        path: The file, for error messages.
        read: Returns the value of a key; None if the file does not have it.
        keys: The names of all keys.
        shapes: The shape of each tensor by its name, in the order of NumPy.
        read_tensor: Returns a tensor in float32 by its name.
    """

    def __init__(
        self,
        path: Path,
        read: Callable[[str], Any],
        keys: tuple[str, ...],
        shapes: Mapping[str, tuple[int, ...]],
        read_tensor: Callable[[str], NDArray[np.float32]],
    ) -> None:
        self.path = path
        self.shapes = shapes
        self.read_tensor = read_tensor
        self._read = read
        self._keys = keys
        self._used: set[str] = set()
        self.architecture = str(self.value("general.architecture", ""))

    def value(self, key: str, *default: Any) -> Any:
        """Return the value of a key."""
        value = self._read(key)
        if value is not None:
            return value
        if default:
            return default[0]
        raise ValueError(f"{self.path} has no key {key}")

    def __contains__(self, key: str) -> bool:
        """Return whether the architecture has a key, given without the architecture's name."""
        return self._read(self._name(key)) is not None

    def integer(self, key: str, *default: int) -> int:
        """Return an integer of the architecture. A list of equal integers, one for each layer, counts as one."""
        value = self._value(key, *default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{self.path}: {self._name(key)} must be an integer, not {value!r}")
        return value

    def integers(self, key: str) -> list[int]:
        """Return integers of the architecture; a single one counts as a list of one."""
        value = self._value(key)
        values = value if isinstance(value, list) else [value]
        if any(isinstance(item, bool) or not isinstance(item, int) for item in values):
            raise ValueError(f"{self.path}: {self._name(key)} must be integers, not {value!r}")
        return values

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of a tensor.

        Raises:
            ValueError: The file does not have it.
        """
        if tensor not in self.shapes:
            raise ValueError(f"{self.path} lacks the tensor {tensor}")
        return self.shapes[tensor]

    def number(self, key: str, *default: float) -> float:
        """Return a number of the architecture."""
        value = self._value(key, *default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{self.path}: {self._name(key)} must be a number, not {value!r}")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """Return a number of the architecture; None if the file does not have the key, or for 0."""
        return self.number(key, 0.0) or None

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean of the architecture."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.path}: {self._name(key)} must be true or false, not {value!r}")
        return value

    def text(self, key: str, default: str) -> str:
        """Return a string of the architecture."""
        return str(self._value(key, default))

    def items(self, key: str) -> list[Any]:
        """Return a list of the architecture."""
        value = self._value(key)
        if not isinstance(value, list):
            raise ValueError(f"{self.path}: {self._name(key)} must be a list, not {value!r}")
        return value

    def refuse_unused(self) -> None:
        """Check that every key of the architecture was read, is without effect, or has a value that means "none".

        Raises:
            ValueError: Another key is in the file: what it requests would be ignored.
        """
        if not self.flag("attention.causal", True):
            raise ValueError(f"{self.path}: {self._name('attention.causal')}=False is not supported")
        known = {self._name(key) for key in _WITHOUT_EFFECT} | self._used
        for name in self._keys:
            if name.startswith(f"{self.architecture}.") and name not in known and (value := self._read(name)):
                raise ValueError(f"{self.path}: {name}={value!r} is not supported for this architecture")

    def _value(self, key: str, *default: Any) -> Any:
        self._used.add(self._name(key))
        return self.value(self._name(key), *default)

    def _name(self, key: str) -> str:
        return f"{self.architecture}.{key}"

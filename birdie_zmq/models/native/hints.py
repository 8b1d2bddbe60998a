"""What a user says of a model whose checkpoint does not describe itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ModelHints:
    """What the user says of a model.

    Attributes:
        model_name: The trainer's name of the model.
        config: A directory with the Hugging Face ``config.json`` of the same architecture.
    """

    model_name: str | None = None
    config: Path | None = None


NO_HINTS = ModelHints()

"""Where compiled programs are kept; apart from what uses it, so that it can be looked at without importing jax."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

FOLDER_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
"""JAX's own word for another folder."""


def programs_folder(environment: Mapping[str, str]) -> Path:
    """The folder of compiled programs, where JAX's own variable names no other."""
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "birdie_zmq" / "programs"

"""The default directory of the compile cache, in a module of its own that does not import jax."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

COMPILE_CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
"""JAX's own environment variable, which names another directory."""


def default_compile_cache_dir(environment: Mapping[str, str]) -> Path:
    """Return the directory of compiled executables that is used if JAX's own variable names no other."""
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "birdie_zmq" / "programs"

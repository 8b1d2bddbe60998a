"""The default directory of the compile cache, in a module of its own that does not import jax."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from birdie_zmq.user_folders import cache_folder

COMPILE_CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
"""JAX's own environment variable, which names another directory."""


def default_compile_cache_dir(environment: Mapping[str, str]) -> Path | None:
    """Return the directory of compiled executables that is used if JAX's own variable names no other.

    Returns None if the user has no folder for caches.
    """
    caches = cache_folder(environment)
    return None if caches is None else caches / "birdie_zmq" / "programs"

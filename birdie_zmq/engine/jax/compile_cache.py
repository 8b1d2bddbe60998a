"""The on-disk compile cache, with which a new model process or a later run does not compile again.

This is JAX's own persistent compilation cache. Its files are machine code that later processes run, so the folder
belongs to the user and is closed to others. JAX's variables take precedence: JAX_COMPILATION_CACHE_DIR names another
folder, and JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import jax

from birdie_zmq.engine.compile_cache_dir import COMPILE_CACHE_VARIABLE, default_compile_cache_dir
from birdie_zmq.engine.jax.compile_cache_check import remove_incomplete_entries

logger = logging.getLogger(__name__)

_MIN_COMPILE_TIME_S = 0.1


def enable_compile_cache(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Enable JAX's compile cache, and return its folder.

    Returns None if JAX's own variables configure the cache, or if the folder cannot be used.

    Args:
        environment: The environment variables of the process.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in environment:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_TIME_S)  # type: ignore[no-untyped-call]
    if COMPILE_CACHE_VARIABLE in environment:
        return None
    folder = default_compile_cache_dir(environment)
    if folder is None:
        logger.warning(
            "the compile cache is off: there is no home directory; set XDG_CACHE_HOME to a folder for caches"
        )
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        logger.warning("the compile cache is off: %s", error)
        return None
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        logger.warning("the compile cache is off: %s is accessible to other users; run chmod 700 on it", folder)
        return None
    try:
        remove_incomplete_entries(folder)
    except OSError as error:
        logger.warning("the compile cache is off: %s", error)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))  # type: ignore[no-untyped-call]
    return folder

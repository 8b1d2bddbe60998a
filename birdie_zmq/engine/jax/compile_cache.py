"""Compiled programs are kept on disk, so that a new model process, or tomorrow's run, does not compile again.

JAX does the keeping. What is kept is machine code that later processes run, so the folder is the user's own and closed
to others. JAX's own variables go before: JAX_COMPILATION_CACHE_DIR names another folder, and
JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import jax

from birdie_zmq.engine.compile_cache_dir import FOLDER_VARIABLE, programs_folder

logger = logging.getLogger(__name__)

_WORTH_KEEPING_S = 0.1


def keep_programs(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Let JAX keep its programs; the folder, or None where JAX's own variables say what to do, or it cannot be used.

    Args:
        environment: Variables of the process.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in environment:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING_S)  # type: ignore[no-untyped-call]
    if FOLDER_VARIABLE in environment:
        return None
    folder = programs_folder(environment)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        logger.warning("compiled programs are not kept: %s", error)
        return None
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        logger.warning("compiled programs are not kept: %s is open to others (chmod 700 it)", folder)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))  # type: ignore[no-untyped-call]
    return folder

"""Checks the machine: the compile cache directory, the directory for temporary files, and the limit of open files."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from birdie_zmq.engine.compile_cache_dir import COMPILE_CACHE_VARIABLE, default_compile_cache_dir
from birdie_zmq.tools.doctor.finding import Finding

_MIN_DESCRIPTORS = 1024
"""The usual default of Linux; a broker needs one or two descriptors per peer."""
_MIN_FREE_MIB = 16
_LOW_FREE_MIB = 512
_MIB = 2**20


def cache_finding(environment: Mapping[str, str]) -> Finding:
    """Check whether executables are cached on disk, where, and the size of the cache."""
    name = "compile cache"
    if environment.get("JAX_ENABLE_COMPILATION_CACHE", "true").lower() in ("false", "0", "no", "off", "f", "n"):
        text = "JAX_ENABLE_COMPILATION_CACHE disables it: every process recompiles"
        return Finding(name, "warning", text, "unset JAX_ENABLE_COMPILATION_CACHE")
    configured = environment.get(COMPILE_CACHE_VARIABLE)
    folder = Path(configured) if configured else default_compile_cache_dir(environment)
    if folder is None:
        return Finding(name, "warning", "there is no home directory, so executables are not cached", _other_folder())
    quoted = shlex.quote(str(folder))
    try:
        found = folder.stat()
    except FileNotFoundError:
        above = next(parent for parent in folder.absolute().parents if parent.exists())
        if above.is_dir() and os.access(above, os.W_OK):
            return Finding(name, "ok", f"{folder} does not exist yet; the first run creates it")
        return Finding(name, "warning", f"{folder} cannot be created: {above} is not writable", _other_folder())
    except OSError as error:
        return Finding(name, "warning", f"{folder} cannot be used: {error.strerror}", _other_folder())
    if not stat.S_ISDIR(found.st_mode):
        return Finding(name, "warning", f"{folder} is not a folder, so executables are not cached", f"rm {quoted}")
    if not configured and found.st_uid != os.getuid():
        return Finding(
            name, "warning", f"{folder} belongs to another user, so executables are not cached", _other_folder()
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        text = f"{folder} is open to others (mode {stat.S_IMODE(found.st_mode):04o}), who could place executables there"
        consequence = "" if configured else "; executables are not cached"
        return Finding(name, "warning", text + consequence, f"chmod 700 {quoted}")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(name, "warning", f"{folder} is not writable", f"chmod 700 {quoted}")
    sizes = [entry.stat().st_size for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
    return Finding(name, "ok", f"{folder} has {len(sizes)} files, {sum(sizes) / _MIB:,.0f} MiB")


def _other_folder() -> str:
    return "export XDG_CACHE_HOME=FOLDER   with a folder of your own"


def temporary_finding(folder: Path, free_bytes: int | None = None) -> Finding:
    """Check whether the embedded broker can create its socket, and whether there is free disk space.

    Args:
        folder: The directory for temporary files.
        free_bytes: Free space in bytes; None asks the operating system.
    """
    name = "temporary files"
    fix = "export TMPDIR=FOLDER   with a writable folder that has free space"
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Finding(name, "wrong", f"{folder} is not a writable folder", fix)
    free_mib = (shutil.disk_usage(folder).free if free_bytes is None else free_bytes) / _MIB
    text = f"{folder} has {free_mib:,.0f} MiB free"
    if free_mib < _MIN_FREE_MIB:
        return Finding(name, "wrong", text, fix)
    return Finding(name, "warning", text, fix) if free_mib < _LOW_FREE_MIB else Finding(name, "ok", text)


def descriptors_finding(soft: int, hard: int) -> Finding:
    """Check the limit of open files per process.

    Args:
        soft: The current limit, -1 for no limit.
        hard: The maximum of the limit, -1 for no maximum.
    """
    name = "open files"
    if soft == -1 or soft >= _MIN_DESCRIPTORS:
        return Finding(name, "ok", f"the limit per process is {'unlimited' if soft == -1 else f'{soft:,}'}")
    recommended = 4096 if hard == -1 else min(4096, hard)
    text = f"the limit per process is {soft}; a broker needs one or two for each client and worker"
    return Finding(name, "warning", text, f"ulimit -n {recommended}")


def temporary_folder(environment: Mapping[str, str]) -> Path:
    """Return the directory in TMPDIR, else Python's default; Python itself silently ignores an unusable TMPDIR."""
    return Path(environment.get("TMPDIR") or tempfile.gettempdir())

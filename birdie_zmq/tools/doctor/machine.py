"""The folder of compiled programs, the folder for temporary files, and open files: what a run takes of the machine."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from birdie_zmq.engine.compile_cache_dir import FOLDER_VARIABLE, programs_folder
from birdie_zmq.tools.doctor.finding import Finding

_FEW_DESCRIPTORS = 1024
"""Less than any Linux has by default; a broker takes one or two a peer."""
_FULL_MIB = 16
_LITTLE_MIB = 512
_MIB = 2**20


def cache_finding(environment: Mapping[str, str]) -> Finding:
    """Whether compiled programs are kept, where, and how much there is of them."""
    name = "compile cache"
    if environment.get("JAX_ENABLE_COMPILATION_CACHE", "true").lower() in ("false", "0", "no", "off", "f", "n"):
        text = "JAX_ENABLE_COMPILATION_CACHE switches it off: every process compiles anew"
        return Finding(name, "warning", text, "unset JAX_ENABLE_COMPILATION_CACHE")
    given = environment.get(FOLDER_VARIABLE)
    folder = Path(given) if given else programs_folder(environment)
    quoted = shlex.quote(str(folder))
    try:
        found = folder.stat()
    except FileNotFoundError:
        above = next(parent for parent in folder.absolute().parents if parent.exists())
        if above.is_dir() and os.access(above, os.W_OK):
            return Finding(name, "ok", f"{folder} is not there yet; the first run makes it")
        return Finding(name, "warning", f"{folder} cannot be made: {above} may not be written to", _elsewhere())
    except OSError as error:
        return Finding(name, "warning", f"{folder} cannot be used: {error.strerror}", _elsewhere())
    if not stat.S_ISDIR(found.st_mode):
        return Finding(name, "warning", f"{folder} is no folder, so compiled programs are not kept", f"rm {quoted}")
    if not given and found.st_uid != os.getuid():
        return Finding(
            name, "warning", f"{folder} belongs to another user, so compiled programs are not kept", _elsewhere()
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        text = f"{folder} is open to others (mode {stat.S_IMODE(found.st_mode):04o}), who could put programs there"
        kept = "" if given else "; compiled programs are not kept"
        return Finding(name, "warning", text + kept, f"chmod 700 {quoted}")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(name, "warning", f"{folder} may not be written to", f"chmod 700 {quoted}")
    sizes = [entry.stat().st_size for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
    return Finding(name, "ok", f"{folder} holds {len(sizes)} files, {sum(sizes) / _MIB:,.0f} MiB")


def _elsewhere() -> str:
    return "export XDG_CACHE_HOME=FOLDER   of a folder that is yours"


def temporary_finding(folder: Path, free_bytes: int | None = None) -> Finding:
    """Whether a run's own broker can have its socket there, and whether there is room.

    Args:
        folder: The folder for temporary files.
        free_bytes: How much is free there; None asks the system.
    """
    name = "temporary files"
    cure = "export TMPDIR=FOLDER   of a folder with room that is yours to write to"
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Finding(name, "wrong", f"{folder} is no folder that may be written to", cure)
    free_mib = (shutil.disk_usage(folder).free if free_bytes is None else free_bytes) / _MIB
    text = f"{folder} has {free_mib:,.0f} MiB free"
    if free_mib < _FULL_MIB:
        return Finding(name, "wrong", text, cure)
    return Finding(name, "warning", text, cure) if free_mib < _LITTLE_MIB else Finding(name, "ok", text)


def descriptors_finding(soft: int, hard: int) -> Finding:
    """Whether a process may have enough open files.

    Args:
        soft: The limit now, -1 for none.
        hard: What it may be raised to, -1 for no limit.
    """
    name = "open files"
    if soft == -1 or soft >= _FEW_DESCRIPTORS:
        return Finding(name, "ok", f"a process may have {'any number' if soft == -1 else f'{soft:,}'}")
    wanted = 4096 if hard == -1 else min(4096, hard)
    text = f"a process may have {soft}; a broker takes one or two for each client and worker"
    return Finding(name, "warning", text, f"ulimit -n {wanted}")


def temporary_folder(environment: Mapping[str, str]) -> Path:
    """The folder that a person means: where TMPDIR names none that can be used, Python silently takes another."""
    return Path(environment.get("TMPDIR") or tempfile.gettempdir())

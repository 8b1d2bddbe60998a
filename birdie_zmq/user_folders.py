"""The user's folders: home, caches and configuration; any of them may be missing.

A container or a scheduler may run a program as a user id without a name, without ``HOME``. Python's own functions raise there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path


def home_folder() -> Path | None:
    """Return the user's home folder; None if there is none."""
    with contextlib.suppress(RuntimeError, KeyError):
        home = Path.home()
        if home.is_absolute():
            return home
    return None


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder for caches, ``$XDG_CACHE_HOME`` or ``~/.cache``; None if there is none."""
    return _folder(environment.get("XDG_CACHE_HOME"), ".cache")


def config_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder for configurations, ``$XDG_CONFIG_HOME`` or ``~/.config``; None if there is none."""
    return _folder(environment.get("XDG_CONFIG_HOME"), ".config")


def _folder(given: str | None, name: str) -> Path | None:
    # The XDG specification ignores a relative path.
    if given and Path(given).is_absolute():
        return Path(given)
    home = home_folder()
    return None if home is None else home / name


def expand_home(path: Path) -> Path:
    """Return a path with ``~`` and ``~user`` expanded; unchanged if there is no such home folder."""
    with contextlib.suppress(RuntimeError, KeyError):
        return path.expanduser()
    return path

"""Import transformers for its configurations and tokenizers, without the PyTorch that may be installed beside it.

transformers imports torch as soon as torch is installed. In a JAX process that costs seconds and hundreds of megabytes,
and it loads a second set of NVIDIA libraries. No setting of transformers prevents it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_PACKAGE = "transformers"

_MAX_CHARACTERS = 400

_modules: dict[str, ModuleType] = {}
"""The modules of the copy of transformers that was imported without torch."""

_lock = threading.RLock()
"""Two threads that exchange modules at the same time would leave those of one to the other."""


@contextlib.contextmanager
def transformers_without_torch() -> Iterator[Any]:
    """Yield the package transformers; its modules cannot import torch unless this process has already done so.

    If torch is in use, the process's own transformers is yielded. Otherwise a separate copy is imported, in which torch
    counts as not installed. After the context the copy is out of `sys.modules`, so that user code that imports torch or
    transformers, before or after, gets both complete. Objects of the copy, such as tokenizers, stay usable.
    """
    if sys.modules.get("torch") is not None:
        import transformers

        yield transformers
        return
    with _lock:
        theirs, is_blocked = _take_modules(), "torch" in sys.modules
        sys.modules.update(_modules)
        sys.modules["torch"] = None  # type: ignore[assignment] # the import system then reports that there is no torch
        try:
            yield _import_quietly()
        finally:
            _modules.update(_take_modules())
            if not is_blocked:
                del sys.modules["torch"]
            sys.modules.update(theirs)


def _take_modules() -> dict[str, ModuleType]:
    """Remove the modules of transformers from `sys.modules`, and return them."""
    names = [name for name in sys.modules if name == _PACKAGE or name.startswith(f"{_PACKAGE}.")]
    return {name: sys.modules.pop(name) for name in names}


def _import_quietly() -> Any:
    """Import transformers without its advice to install torch."""
    advice = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    given = os.environ.get(advice)
    os.environ[advice] = "1"
    try:
        import transformers
    finally:
        del os.environ[advice]
        if given is not None:
            os.environ[advice] = given
    return transformers


def shorten(message: str) -> str:
    """Return an error message of transformers on one line, without the long lists that it may append."""
    text = " ".join(message.split())
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]} …"

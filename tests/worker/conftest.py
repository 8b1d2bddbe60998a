"""Undo what the import of a user module leaves in the process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.harness import Harness


@pytest.fixture(autouse=True)
def _undo_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A model process imports one user module and exits, but tests share a process."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = dict(sys.modules)
    yield
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]
            if name in before:
                sys.modules[name] = before[name]


@pytest.fixture
def harness() -> Harness:
    """Return the core of an agent without a model process."""
    return Harness()

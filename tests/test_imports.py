"""Which modules import jax, torch and zmq, and which must not."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

RECORDING_IMPORT = """
import json, sys

class Recorder:
    # Records every module that is imported, including modules that are not installed here.
    def __init__(self):
        self.names = set()

    def find_spec(self, name, path=None, target=None):
        self.names.add(name.partition(".")[0])

recorder = Recorder()
sys.meta_path.insert(0, recorder)
import {module}
print(json.dumps(sorted(recorder.names)))
"""


def modules_imported_by(module: str) -> set[str]:
    """Return the top-level names that are imported when a fresh process imports a module."""
    done = subprocess.run(
        [sys.executable, "-c", RECORDING_IMPORT.format(module=module)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", ["birdie_zmq", "birdie_zmq.client", "harness_model"])
def test_the_lm_eval_side_imports_neither_jax_nor_torch(module: str) -> None:
    imported = modules_imported_by(module)

    assert "birdie_zmq" in imported
    assert imported.isdisjoint({"jax", "jaxlib", "torch", "transformers"})


@pytest.mark.parametrize(
    "module",
    [
        "birdie_zmq.broker.server",
        "birdie_zmq.worker.agent",
        "birdie_zmq.cli.main",
        "birdie_zmq.cli.doctor",
        "birdie_zmq.cli.compare",
    ],
)
def test_broker_agent_and_commands_import_no_framework(module: str) -> None:
    imported = modules_imported_by(module)

    assert "birdie_zmq" in imported
    assert imported.isdisjoint({"jax", "jaxlib", "torch", "transformers"})


@pytest.mark.parametrize(
    "module", ["birdie_zmq.worker.model_server", "birdie_zmq.models", "birdie_zmq.engine.numpy.row_backend"]
)
def test_a_model_process_imports_a_framework_only_with_its_engine(module: str) -> None:
    imported = modules_imported_by(module)

    assert "birdie_zmq" in imported
    assert imported.isdisjoint({"jax", "jaxlib", "torch", "transformers"})


def test_an_import_of_jax_is_detected() -> None:
    assert "jax" in modules_imported_by("birdie_zmq.engine.jax.backend")


def imported_by(path: Path) -> set[str]:
    """Return the top-level names of all imports in a file, including those inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=aliases):
                names |= {alias.name.partition(".")[0] for alias in aliases}
            case ast.ImportFrom(module=str(module), level=0):
                names.add(module.partition(".")[0])
    return names


ENTRY_FILES = [ROOT / "api.py", ROOT / "broker.py", ROOT / "harness_model.py", *sorted((ROOT / "workers").glob("*.py"))]


@pytest.mark.parametrize("path", ENTRY_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_entry_files_import_neither_a_framework_nor_zmq(path: Path) -> None:
    assert imported_by(path).isdisjoint({"jax", "jaxlib", "torch", "transformers", "zmq"})


def test_an_import_in_a_file_is_detected() -> None:
    assert "jax" in imported_by(ROOT / "birdie_zmq" / "engine" / "jax" / "backend.py")
    assert "zmq" in imported_by(ROOT / "birdie_zmq" / "protocol" / "transport.py")

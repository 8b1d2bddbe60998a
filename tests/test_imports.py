"""Who imports jax, torch and zmq, and who must not."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ASKED = """
import json, sys

class Recorder:
    # Hears of every module that is asked for, also of one that is not installed here.
    def __init__(self):
        self.names = set()

    def find_spec(self, name, path=None, target=None):
        self.names.add(name.partition(".")[0])

recorder = Recorder()
sys.meta_path.insert(0, recorder)
import {module}
print(json.dumps(sorted(recorder.names)))
"""


def asked_for_by(module: str) -> set[str]:
    """The top-level names that importing a module in a fresh process asks for."""
    done = subprocess.run(
        [sys.executable, "-c", ASKED.format(module=module)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", ["birdie_zmq", "birdie_zmq.client", "harness_model"])
def test_the_lm_eval_side_asks_for_neither_jax_nor_torch(module: str) -> None:
    asked = asked_for_by(module)

    assert "birdie_zmq" in asked
    assert asked.isdisjoint({"jax", "jaxlib", "torch", "transformers"})


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
def test_broker_agent_and_commands_ask_for_no_framework(module: str) -> None:
    asked = asked_for_by(module)

    assert "birdie_zmq" in asked
    assert asked.isdisjoint({"jax", "jaxlib", "torch", "transformers"})


@pytest.mark.parametrize(
    "module", ["birdie_zmq.worker.model_server", "birdie_zmq.models", "birdie_zmq.engine.numpy.row_backend"]
)
def test_a_model_process_asks_for_a_framework_only_by_its_engine(module: str) -> None:
    asked = asked_for_by(module)

    assert "birdie_zmq" in asked
    assert asked.isdisjoint({"jax", "jaxlib", "torch", "transformers"})


def test_asking_for_jax_would_be_noticed() -> None:
    assert "jax" in asked_for_by("birdie_zmq.engine.jax.backend")


def imported_by(path: Path) -> set[str]:
    """The top-level names of all imports in a file, those inside of functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=aliases):
                names |= {alias.name.partition(".")[0] for alias in aliases}
            case ast.ImportFrom(module=str(module), level=0):
                names.add(module.partition(".")[0])
    return names


FACES = [ROOT / "api.py", ROOT / "broker.py", ROOT / "harness_model.py", *sorted((ROOT / "workers").glob("*.py"))]


@pytest.mark.parametrize("path", FACES, ids=lambda path: str(path.relative_to(ROOT)))
def test_faces_import_no_framework_and_no_socket(path: Path) -> None:
    assert imported_by(path).isdisjoint({"jax", "jaxlib", "torch", "transformers", "zmq"})


def test_an_import_in_a_file_would_be_noticed() -> None:
    assert "jax" in imported_by(ROOT / "birdie_zmq" / "engine" / "jax" / "backend.py")
    assert "zmq" in imported_by(ROOT / "birdie_zmq" / "protocol" / "sockets.py")

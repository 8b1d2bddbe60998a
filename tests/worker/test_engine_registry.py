"""Resolving an engine's name or path, and importing it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from birdie_zmq.engine.jax import backend as jax_backend
from birdie_zmq.engine.mesh_shape import MeshShape
from birdie_zmq.errors import EngineError, UsageError
from birdie_zmq.worker import engine_registry
from birdie_zmq.worker.engine_registry import BUILT_IN, engine_name, find_engine, import_engine

VALID = "def make_backend(model, max_length):\n    return model, max_length\n"


@pytest.fixture(autouse=True)
def _undo_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("birdie_zmq_engine_") or name == "beside":
            del sys.modules[name]


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_engines_are_found_by_name_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, VALID)
    monkeypatch.chdir(tmp_path)

    assert [find_engine(name) for name in ("jax", "torch", "mine.py", file)] == ["jax", "torch", file, file]
    assert [engine_name(engine) for engine in ("jax", "torch", file)] == ["jax", "torch", "mine"]


@pytest.mark.parametrize("given", ["", "Jax", "mlx", "none.py", "notes.txt", "."])
def test_unknown_engine_is_refused_with_the_valid_choices(
    tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "", "notes.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"no engine '{given}'; give jax, torch, or the path of a Python file"):
        find_engine(given)


def test_jax_has_no_engine_identity() -> None:
    engine = import_engine("jax")

    assert engine.identity is None
    assert engine.module is jax_backend
    assert engine.module is jax_backend


def test_engine_file_may_import_from_its_directory_and_its_source_is_its_identity(tmp_path: Path) -> None:
    write(tmp_path, "WORD = 'from beside'", "beside.py")
    first = import_engine(write(tmp_path, f"import beside\nWORD = beside.WORD\n{VALID}"))
    assert first.module.WORD == "from beside"
    assert first.name == "mine"
    first.prepare()  # does nothing, since there is no such function

    second = import_engine(write(tmp_path, f"done = []\ndef prepare():\n    done.append(1)\n{VALID}"))
    second.prepare()
    assert second.module.done == [1]
    assert first.identity is not None
    assert second.identity is not None
    assert first.identity != second.identity


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "has no function make_backend"),
        ("make_backend = 3", "has no function make_backend"),
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
        ("def", "raised SyntaxError"),
        ("import no_such_framework", "the engine mine needs no_such_framework, which is not installed"),
    ],
)
def test_invalid_engine_file_is_refused_with_the_reason(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(EngineError, match=expected):
        import_engine(write(tmp_path, text))


def test_missing_framework_is_named_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, BUILT_IN["torch"], raising=False)
    with pytest.raises(EngineError, match=r"torch needs torch, which is not installed; .* 'birdie-zmq\[torch\]'"):
        import_engine("torch")
    assert engine_registry.DEFAULT in BUILT_IN


def test_engine_without_make_mesh_refuses_a_mesh(tmp_path: Path) -> None:
    file = tmp_path / "other.py"
    file.write_text("def make_backend(model, max_length): ...")
    with pytest.raises(UsageError, match="mesh= in model_args needs the engine jax, and this worker's engine is other"):
        import_engine(str(file)).make_mesh(MeshShape(data=2))

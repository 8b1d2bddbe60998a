"""Engines: which there are, finding one by what a person said, and importing it in the model process.

An engine is a module with ``make_backend(model: LoadedModel, max_length: int) -> Backend``, and where something must be
done before a page is imported, with ``prepare() -> None``. One that spreads a model over devices has
``make_mesh(shape: MeshShape)`` too, and its ``make_backend`` takes the result as ``mesh=``. It is one of this package, or a
file of somebody's own.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from birdie_zmq.engine.backend import Backend
from birdie_zmq.engine.mesh_shape import MeshShape
from birdie_zmq.engine.model_api import LoadedModel
from birdie_zmq.errors import EngineError, UsageError

DEFAULT = "jax"

BUILT_IN = {"jax": "birdie_zmq.engine.jax.backend", "torch": "birdie_zmq.engine.torch.backend"}
"""The module of each engine that comes with the package."""

MakeBackend = Callable[..., Backend]


@dataclass(frozen=True)
class Engine:
    """An imported engine.

    Attributes:
        name: That of a built-in engine, or of the file without its suffix.
        identity: What tells its answers from those of other engines; None for JAX, whose answers were there first.
        module: The module.
    """

    name: str
    identity: str | None
    module: ModuleType

    def prepare(self) -> None:
        """Do what the engine wants done before a page is imported."""
        function: Callable[[], None] | None = getattr(self.module, "prepare", None)
        if function is not None:
            function()

    def make_mesh(self, shape: MeshShape) -> object:
        """The devices of a mesh, as the engine's framework has them.

        Raises:
            UsageError: There are too few devices, or the engine knows no meshes.
        """
        function: Callable[[MeshShape], object] | None = getattr(self.module, "make_mesh", None)
        if function is None:
            raise UsageError(f"mesh= in model_args is for the engine jax, and this model's is {self.name}")
        return function(shape)

    def make_backend(self, model: LoadedModel, max_length: int, mesh: object = None) -> Backend:
        """A backend of a resolved model and its longest row; only engines that make meshes are given one."""
        function: MakeBackend = self.module.make_backend
        return function(model, max_length) if mesh is None else function(model, max_length, mesh=mesh)


def find_engine(given: str) -> str:
    """The engine that a person named: a built-in one by its name, else the absolute path of its file.

    Raises:
        UsageError: There is no such engine.
    """
    if given in BUILT_IN:
        return given
    path = Path(given).expanduser()
    if path.is_file() and path.suffix == ".py":
        return str(path.resolve())
    raise UsageError(
        f"there is no engine {given!r}: it may be {', '.join(BUILT_IN)}, or the path of a Python file with "
        f"make_backend(model, max_length) (there is none at {path.absolute()})"
    )


def name_of(engine: str) -> str:
    """A short name for what `find_engine` gave."""
    return engine if engine in BUILT_IN else Path(engine).stem


def import_engine(engine: str) -> Engine:
    """Import what `find_engine` gave. A file may import what lies beside it, as a script may.

    Raises:
        EngineError: Its import raised, such as where its framework is not installed, or it has no make_backend.
    """
    name = name_of(engine)
    try:
        if engine in BUILT_IN:
            return Engine(name, None if engine == DEFAULT else engine, importlib.import_module(BUILT_IN[engine]))
        source = Path(engine)
        module = _import_file(source)
        identity = f"{name} {hashlib.sha256(source.read_bytes()).hexdigest()}"
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        advice = f"; install it (pip install 'birdie-zmq[{engine}]')" if engine in BUILT_IN else ""
        raise EngineError(f"the engine {name} needs {missing}, which is not installed{advice}") from error
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        raise EngineError(
            f"importing the engine {engine} raised {type(error).__name__}: {error}", remote_traceback=text
        ) from error
    if not callable(getattr(module, "make_backend", None)):
        raise EngineError(f"{source} has no function make_backend(model, max_length)")
    return Engine(name, identity, module)


def _import_file(source: Path) -> ModuleType:
    name = f"birdie_zmq_engine_{source.stem}"  # no name that a page could mean
    spec = importlib.util.spec_from_file_location(name, source)
    if spec is None or spec.loader is None:
        raise ImportError(f"{source} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for their annotations
    sys.path.insert(0, str(source.parent))
    spec.loader.exec_module(module)
    return module

"""The engines: the built-in ones, how an engine's name or path is resolved, and its import in the model process.

An engine is a module with ``make_backend(model: LoadedModel, max_length: int) -> Backend``. It may also have
``prepare() -> None``, which is called before the user module is imported. An engine that shards a model over devices has
``make_mesh(shape: MeshShape)`` too, and its ``make_backend`` takes the result as ``mesh=``. The module is part of this
package, or a file of the user.
"""

from __future__ import annotations

import hashlib
import importlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from birdie_zmq.engine.backend import Backend
from birdie_zmq.engine.mesh_shape import MeshShape
from birdie_zmq.engine.model_api import LoadedModel
from birdie_zmq.errors import EngineError, UsageError
from birdie_zmq.user_folders import expand_home
from birdie_zmq.worker.user_imports import import_user_file

DEFAULT = "jax"

BUILT_IN = {"jax": "birdie_zmq.engine.jax.backend", "torch": "birdie_zmq.engine.torch.backend"}
"""The module of each built-in engine."""

MakeBackend = Callable[..., Backend]


@dataclass(frozen=True)
class Engine:
    """An imported engine.

    Attributes:
        name: The name of a built-in engine, or the name of the file without its suffix.
        identity: Distinguishes its answers from those of other engines in a model's identity. None for JAX, whose answers
            are older than this field.
        module: The module.
    """

    name: str
    identity: str | None
    module: ModuleType

    def prepare(self) -> None:
        """Call the engine's ``prepare``, if it has one; must happen before the user module is imported."""
        function: Callable[[], None] | None = getattr(self.module, "prepare", None)
        if function is not None:
            function()

    def make_mesh(self, shape: MeshShape | None) -> object:
        """Return a mesh of devices, in the form of the engine's framework; None for no shape.

        Raises:
            UsageError: There are too few devices, or the engine does not support meshes.
        """
        if shape is None:
            return None
        function: Callable[[MeshShape], object] | None = getattr(self.module, "make_mesh", None)
        if function is None:
            raise UsageError(f"mesh= in model_args needs the engine jax, and this worker's engine is {self.name}")
        return function(shape)

    def make_backend(self, model: LoadedModel, max_length: int, mesh: object = None) -> Backend:
        """Return a backend for a resolved model.

        Args:
            model: The model.
            max_length: The maximum length of a row, in tokens.
            mesh: The mesh that `make_mesh` returned, which the engine receives as ``mesh=``; None passes no such argument.
        """
        function: MakeBackend = self.module.make_backend
        return function(model, max_length) if mesh is None else function(model, max_length, mesh=mesh)


def find_engine(given: str) -> str:
    """Resolve ``--engine`` or ``engine=``: the name of a built-in engine, else the absolute path of its file.

    Raises:
        UsageError: There is no such engine.
    """
    if given in BUILT_IN:
        return given
    path = expand_home(Path(given))
    if path.is_file() and path.suffix == ".py":
        return str(path.resolve())
    raise UsageError(
        f"there is no engine {given!r}; give {', '.join(BUILT_IN)}, or the path of a Python file with "
        f"make_backend(model, max_length) (no such file: {path.absolute()})"
    )


def engine_name(engine: str) -> str:
    """Return the short name of an engine that `find_engine` returned."""
    return engine if engine in BUILT_IN else Path(engine).stem


def import_engine(engine: str) -> Engine:
    """Import an engine that `find_engine` returned. A file may import modules from its own directory, as a script may.

    Raises:
        EngineError: Its import raised, for example because its framework is not installed, or it has no make_backend.
    """
    name = engine_name(engine)
    try:
        if engine in BUILT_IN:
            return Engine(name, None if engine == DEFAULT else engine, importlib.import_module(BUILT_IN[engine]))
        source = Path(engine)
        module = import_user_file(source, f"birdie_zmq_engine_{source.stem}")
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

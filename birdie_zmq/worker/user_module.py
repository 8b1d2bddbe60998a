"""The page that a user edits: finding it, importing it, and calling its two functions with their errors made readable."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from birdie_zmq.engine.mesh_shape import WORD
from birdie_zmq.errors import BirdieError, ModelLoadError, UserModuleError
from birdie_zmq.types import ModelSpec

BUILT_IN = "birdie_zmq.models"


@dataclass(frozen=True)
class UserModule:
    """An imported page. ``name`` is its path, or the name of the built-in module; ``sha256`` is that of its text."""

    name: str
    sha256: str
    module: ModuleType

    def load_model(self, model: ModelSpec, mesh: object = None) -> object:
        """What the page's ``load_model`` returns for a model, which is told of a mesh only where there is one.

        Raises:
            ModelLoadError: It raised; the traceback of the page is attached.
            BirdieError: It raised one of this package's own errors.
        """
        return self._call("load_model", model, {} if mesh is None else {WORD: mesh})

    def load_tokenizer(self, model: ModelSpec) -> object:
        """What the page's ``load_tokenizer`` returns for a model.

        Raises:
            ModelLoadError: It raised; the traceback of the page is attached.
            BirdieError: It raised one of this package's own errors.
        """
        return self._call("load_tokenizer", model, {})

    def _call(self, name: str, model: ModelSpec, more: dict[str, Any]) -> object:
        function: Callable[..., object] = getattr(self.module, name)
        keywords: dict[str, Any] = json.loads(model.arguments)
        keywords.pop(WORD, None)  # The sizes are of no use beside the mesh itself, nor to a tokenizer.
        keywords |= more
        try:
            return function(model.tag, **keywords)
        except BirdieError:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise ModelLoadError(
                f"{name}({model.tag!r}{', …' if keywords else ''}) of {self.name} raised "
                f"{type(error).__name__}: {error}",
                remote_traceback=_from_page(error),
            ) from error


def import_user_module(path: str | None) -> UserModule:
    """Import the page at a path, or the built-in one for None.

    A page may import what lies beside it, as a script may.

    Raises:
        ApiPageError: There is no such file, its import raised, or it lacks one of the two functions.
    """
    if path is None:
        module = importlib.import_module(BUILT_IN)
        source = Path(str(module.__file__))
        return UserModule(BUILT_IN, _sha256(source), module)
    source = Path(path).resolve()
    if not source.is_file():
        raise UserModuleError(f"there is no api page at {source}")
    spec = importlib.util.spec_from_file_location("api", source)
    if spec is None or spec.loader is None:
        raise UserModuleError(f"{source} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["api"] = module
    sys.path.insert(0, str(source.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UserModuleError(
            f"importing {source} raised {type(error).__name__}: {error}", remote_traceback=_from_page(error)
        ) from error
    for name in ("load_model", "load_tokenizer"):
        if not callable(getattr(module, name, None)):
            raise UserModuleError(f"{source} has no function {name}(model_tag, **kwargs)")
    return UserModule(str(source), _sha256(source), module)


def _sha256(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()


def _from_page(error: BaseException) -> str:
    """The traceback from the page on: the frames of this file and of the import machinery say nothing to its author."""
    frames = traceback.TracebackException.from_exception(error)
    ours = {__file__, "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>"}
    kept = [frame for frame in frames.stack if frame.filename not in ours]
    frames.stack = traceback.StackSummary.from_list(kept)
    return "".join(frames.format())

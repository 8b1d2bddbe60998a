"""The user module, usually ``api.py``: its import, and calls of its two functions with readable errors."""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from birdie_zmq.errors import BirdieError, ModelLoadError, UserModuleError
from birdie_zmq.types import REQUEST_ARGUMENTS, RequestArgument
from birdie_zmq.worker import user_imports
from birdie_zmq.worker.user_imports import import_user_file

BUILT_IN = "birdie_zmq.models"

_NAME = "birdie_zmq_user_module"
"""The name of the user module in ``sys.modules``: ``api`` may be a package of the user's own."""

_DECLARATION = "REQUEST_ARGUMENTS"
"""The name under which a user module declares the request arguments that it ignores."""
_FUNCTIONS = ("load_model", "load_tokenizer")


@dataclass(frozen=True)
class UserModule:
    """An imported user module.

    Attributes:
        name: Its path, or the name of the built-in module.
        sha256: The SHA-256 of its source.
        module: The module.
        request_arguments: The request arguments that it ignores. Its functions do not receive them, so what they return
            cannot depend on their values.
    """

    name: str
    sha256: str
    module: ModuleType
    request_arguments: frozenset[RequestArgument] = frozenset()

    def load_model(self, tag: str, keywords: Mapping[str, Any], mesh: object = None) -> object:
        """Call the module's ``load_model`` for a model, with ``mesh=`` only if there is a mesh, and return the result.

        Raises:
            ModelLoadError: It raised; the traceback within the user module is attached.
            BirdieError: It raised one of this package's own errors.
        """
        return self._call("load_model", tag, keywords, {} if mesh is None else {"mesh": mesh})

    def load_tokenizer(self, tag: str, keywords: Mapping[str, Any]) -> object:
        """Call the module's ``load_tokenizer`` for a model, and return the result.

        Raises:
            ModelLoadError: It raised; the traceback within the user module is attached.
            BirdieError: It raised one of this package's own errors.
        """
        return self._call("load_tokenizer", tag, keywords, {})

    def _call(self, name: str, tag: str, given: Mapping[str, Any], extra: Mapping[str, object]) -> object:
        function: Callable[..., object] = getattr(self.module, name)
        # A copy, since the function may change nested values, and the model's identity covers the arguments as given.
        received = {key: value for key, value in given.items() if key not in self.request_arguments}
        keywords = {**copy.deepcopy(received), **extra}
        try:
            return function(tag, **keywords)
        except BirdieError:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise ModelLoadError(
                f"{name}({tag!r}{', …' if keywords else ''}) of {self.name} raised {type(error).__name__}: {error}",
                remote_traceback=_user_traceback(error),
            ) from error


def import_user_module(path: str | None) -> UserModule:
    """Import the user module at a path, or the built-in models for None.

    A user module may import modules from its own directory, as a script may.

    Raises:
        UserModuleError: There is no such file, its import raised, it lacks one of the two functions, or it declares
            ``REQUEST_ARGUMENTS`` that it cannot ignore.
    """
    if path is None:
        module = importlib.import_module(BUILT_IN)
        source = Path(str(module.__file__))
        return UserModule(BUILT_IN, _sha256(source), module, REQUEST_ARGUMENTS)
    source = Path(path).resolve()
    if not source.is_file():
        raise UserModuleError(f"there is no user module at {source}; --api takes the path of your api.py")
    if importlib.util.spec_from_file_location(_NAME, source) is None:
        raise UserModuleError(f"{source} is not a Python file; --api takes the path of your api.py")
    try:
        module = import_user_file(source, _NAME)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UserModuleError(
            f"importing {source} raised {type(error).__name__}: {error}", remote_traceback=_user_traceback(error)
        ) from error
    for name in _FUNCTIONS:
        if not callable(getattr(module, name, None)):
            raise UserModuleError(f"{source} has no function {name}(model_tag, **kwargs)")
    return UserModule(str(source), _sha256(source), module, _declared_request_arguments(source, module))


def _declared_request_arguments(source: Path, module: ModuleType) -> frozenset[RequestArgument]:
    """Return the request arguments that a user module declares to ignore.

    Raises:
        UserModuleError: The declaration names something else, or an argument that one of the functions takes by name.
    """
    declared = getattr(module, _DECLARATION, ())
    if isinstance(declared, str) or not isinstance(declared, tuple | list | set | frozenset):
        raise UserModuleError(
            f"{_DECLARATION} of {source} is a {type(declared).__name__}; it must be a tuple of argument names, such as "
            '("seed", "max_gen_toks")'
        )
    known = frozenset(name for name in REQUEST_ARGUMENTS if name in declared)
    unknown = sorted(str(name) for name in declared if name not in known)
    if unknown:
        raise UserModuleError(
            f"{_DECLARATION} of {source} names {', '.join(unknown)}; it may name these arguments: "
            f"{', '.join(sorted(REQUEST_ARGUMENTS))}"
        )
    for function in _FUNCTIONS:
        taken = sorted(known & _parameter_names(getattr(module, function)))
        if taken:
            raise UserModuleError(
                f"{source} declares {', '.join(taken)} in {_DECLARATION}, but {function} has a parameter of that name; an "
                "argument that a function uses must not be declared, so remove it from one of the two"
            )
    return known


def _parameter_names(function: Callable[..., object]) -> set[str]:
    """Return the names of a function's parameters; none for a callable whose signature cannot be read."""
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()


def _sha256(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()


def _user_traceback(error: BaseException) -> str:
    """Format the traceback without the frames of this file and of the import machinery, which do not help the author."""
    frames = traceback.TracebackException.from_exception(error)
    ours = {__file__, user_imports.__file__, "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>"}
    kept = [frame for frame in frames.stack if frame.filename not in ours]
    frames.stack = traceback.StackSummary.from_list(kept)
    return "".join(frames.format())

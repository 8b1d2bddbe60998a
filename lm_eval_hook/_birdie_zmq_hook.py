"""Registers ``--model birdie_zmq`` with the unmodified ``lm_eval`` command.

lm_eval up to 0.5.0.dev1 reads no entry points for models, so ``birdie_zmq_lm_eval.pth`` imports this module whenever Python
starts. When ``lm_eval.models`` is imported, the hook registers the name, as a "module:class" string that lm_eval imports
only when the model is used. It changes nothing else, and does nothing without lm_eval. Set BIRDIE_ZMQ_NO_HOOK=1 to
disable it.

The hook imports only two built-in modules, since it delays every start of Python. It must not be part of the package:
importing it from there would import the installed ``birdie_zmq`` even where a checkout has its own.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

MODULE = "lm_eval.models"
NAME = "birdie_zmq"
TARGET = "harness_model:BirdieZMQ"


def register() -> None:
    """Add the name to lm_eval's registry, unless it is already registered, for instance by an entry point."""
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)


class Finder:
    """A finder of ``lm_eval.models`` that makes the module's loader call `register` at the end."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """Return the spec of ``lm_eval.models``, None for other modules; called by the import system."""
        if fullname != MODULE:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec: ModuleSpec | None = finder.find_spec(fullname, path, target)  # type: ignore[arg-type]
            if spec is not None and spec.loader is not None:
                self._extend(spec)
                return spec
        return None

    def _extend(self, spec: "ModuleSpec") -> None:
        loader = spec.loader
        assert loader is not None
        execute = loader.exec_module

        def exec_module(module: "ModuleType") -> None:
            execute(module)
            register()

        loader.exec_module = exec_module  # type: ignore[method-assign]


def install() -> None:
    """Register now if ``lm_eval.models`` is already imported, else when it is imported."""
    if MODULE in sys.modules:
        register()
    elif not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())


if not os.environ.get("BIRDIE_ZMQ_NO_HOOK"):
    install()

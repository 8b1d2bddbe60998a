"""Makes the plain ``lm_eval`` command know ``--model birdie_zmq``.

lm_eval 0.4.13 reads no entry points for models, so ``birdie_zmq_lm_eval.pth`` imports this module whenever Python
starts. It waits for ``lm_eval.models`` to be imported and then registers the name there, as a "module:class" string
which lm_eval imports only when it is asked for. Nothing else is touched, and without lm_eval nothing happens at all.
Set BIRDIE_ZMQ_NO_HOOK=1 to switch it off.

It imports two built-in modules and nothing else, since every start of Python pays for it. It must not lie inside the
package: importing it there would import the installed ``birdie_zmq`` before a checkout's own.
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
    """Add the name to lm_eval's registry, unless an entry point has done so already."""
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)


class Finder:
    """Finds ``lm_eval.models`` where it is, and has its loader call `register` when it is done."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """The import system asks for every module that is not imported yet."""
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
    """Register at once where ``lm_eval.models`` is imported already, else as soon as it is."""
    if MODULE in sys.modules:
        register()
    elif not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())


if not os.environ.get("BIRDIE_ZMQ_NO_HOOK"):
    install()

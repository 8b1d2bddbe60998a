"""The import of a user's file, which may import modules from its own directory, as a script may.

A model process goes on importing modules of Python and of this package's dependencies while the user's file runs. Its
directory may hold files with their names, such as ``json.py`` or ``tokenizers.py``, and must not hide them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType

from packaging.requirements import Requirement

_DISTRIBUTION = "birdie-zmq"
_PACKAGE = Path(__file__).resolve().parent.parent
_SITE_DIRECTORIES = {"site-packages", "dist-packages"}


def import_user_file(source: Path, name: str) -> ModuleType:
    """Import a file, and let it import modules from its directory from now on.

    Args:
        source: The absolute path of the file.
        name: The name of the module, which must not clash with one that the file imports.

    Raises:
        ImportError: It is not a Python file.
        BaseException: Whatever its import raises.
    """
    spec = importlib.util.spec_from_file_location(name, source)
    if spec is None or spec.loader is None:
        raise ImportError(f"{source} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their annotations there
    sys.meta_path.insert(sys.meta_path.index(PathFinder), _DirectoryFinder(source, module))
    # At the end, where it hides nothing: child processes inherit the path, but not the finder.
    sys.path.append(str(source.parent))
    spec.loader.exec_module(module)
    return module


class _DirectoryFinder(MetaPathFinder):
    """Finds modules in the directory of a user's file before others, except those that the process itself needs.

    - A module of this package's dependencies is never hidden.
    - A module of Python's standard library is hidden only from the files of the directory.
    - The file itself hides no other module. Imported by its own name, it is the module that exists already.

    Args:
        source: The file.
        module: Its module.
    """

    def __init__(self, source: Path, module: ModuleType) -> None:
        self._source = source
        self._directory = source.parent
        self._module = module

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a top-level module; None leaves it to the next finder. Called by the import system."""
        if path is not None:
            return None
        own = PathFinder.find_spec(fullname, [str(self._directory)], target)
        if own is None or own.origin is None:  # None, too, for a folder without __init__.py, which hides no module
            return None
        elsewhere = [entry for entry in sys.path if Path(entry).resolve() != self._directory]
        other = PathFinder.find_spec(fullname, elsewhere, target)
        is_source = Path(own.origin) == self._source
        if other is not None and other.origin is not None and (is_source or self._must_not_hide(fullname)):
            return other
        if is_source:
            return importlib.util.spec_from_loader(fullname, _ExistingModule(self._module), origin=own.origin)
        return own

    def _must_not_hide(self, fullname: str) -> bool:
        if fullname in sys.stdlib_module_names:
            return not self._contains(_importing_file())
        return _is_dependency(fullname)

    def _contains(self, file: Path) -> bool:
        """Return whether a file is the user's own: a virtual environment, or this package, may be in the directory too."""
        return (
            file.is_relative_to(self._directory)
            and not file.is_relative_to(_PACKAGE)
            and _SITE_DIRECTORIES.isdisjoint(file.relative_to(self._directory).parts)
        )


class _ExistingModule(Loader):
    """A loader that returns a module that has been loaded before."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:  # noqa: ARG002 -- given by the import system
        """Return the module."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing but restore the module's own spec, which the import system has replaced."""
        module.__spec__ = self._spec


def _importing_file() -> Path:
    """Return the file with the running import statement."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name != __file__ and not name.startswith("<frozen importlib") and name != importlib.__file__:
            return Path(name)
        frame = frame.f_back
    return Path()


def _is_dependency(module: str) -> bool:
    """Return whether a distribution that this package requires, directly or not, provides a top-level module."""
    distributions = importlib.metadata.packages_distributions().get(module, ())
    return any(_normalised(name) in _required() for name in distributions)


@functools.cache
def _required() -> frozenset[str]:
    """Return the installed distributions that this package requires with all of its extras, and those they require."""
    found: set[str] = set()
    waiting = [_DISTRIBUTION]
    while waiting:
        name = _normalised(waiting.pop())
        if name in found:
            continue
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        waiting += [
            requirement.name
            for requirement in map(Requirement, requirements)
            if name == _DISTRIBUTION or requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ]
    return frozenset(found)


def _normalised(distribution: str) -> str:
    return distribution.lower().replace("_", "-").replace(".", "-")

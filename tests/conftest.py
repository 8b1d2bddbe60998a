"""Fixtures and settings of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# The duration of an example depends on the load of the machine.
settings.register_profile("birdie", deadline=None)
settings.load_profile("birdie")

ROOT = Path(__file__).resolve().parent.parent


class FileScheduling(LoadScopeScheduling):
    """A scheduler of pytest-xdist that keeps the tests of a file in one process if they share fixtures or compilations.

    Unit tests share compilations. Integration tests mostly wait for real processes; without fixtures of module scope
    they are distributed one by one.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        distributed = "/integration/" in file and 'scope="module"' not in (ROOT / file).read_text(encoding="utf-8")
        return nodeid if distributed else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling:
    """Return the scheduler when pytest-xdist runs tests in several processes."""
    return FileScheduling(config, log)


@pytest.fixture(scope="session")
def model_files() -> Path:
    """The folder of the model files (api.py) for tests."""
    return ROOT / "tests" / "model_files"


@pytest.fixture(scope="session", autouse=True)
def shared_compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Share a compilation cache among the model processes of all tests, where compilation takes most of the time.

    This also tests that JAX's environment variables reach a model process.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # the folder of all pytest-xdist workers of this run
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    before = {name: os.environ.get(name) for name in cache}
    os.environ.update(cache)
    for option in cache:  # JAX read the variables of this process before they were set.
        value: str = cache[option]
        jax.config.update(option.lower(), value if option.endswith("DIR") else int(value))  # type: ignore[no-untyped-call]
    yield
    for name, old in before.items():
        if old is None:
            del os.environ[name]
        else:
            os.environ[name] = old

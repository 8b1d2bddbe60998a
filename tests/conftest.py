"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# How long an example takes depends on what else the machine does.
settings.register_profile("birdie", deadline=None)
settings.load_profile("birdie")

ROOT = Path(__file__).resolve().parent.parent


class ByWhatIsShared(LoadScopeScheduling):
    """Which tests pytest-xdist gives to one process together: those that share what is made once for their file.

    Unit tests share what they compile. Of those with real processes, which wait for them, most share nothing, and spread.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        spreads = "/integration/" in file and 'scope="module"' not in (ROOT / file).read_text(encoding="utf-8")
        return nodeid if spreads else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByWhatIsShared:
    """As pytest-xdist asks for one, where it runs tests in several processes."""
    return ByWhatIsShared(config, log)


@pytest.fixture(scope="session")
def pages() -> Path:
    """The folder of the api pages that tests load models from."""
    return ROOT / "tests" / "model_files"


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the model processes of all tests share their compiles, which would take most of the time.

    That the variables reach a model process is part of what is tested.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all workers of this run
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    before = {name: os.environ.get(name) for name in cache}
    os.environ.update(cache)
    for option in cache:  # This process has read the variables before they were set.
        value: str = cache[option]
        jax.config.update(option.lower(), value if option.endswith("DIR") else int(value))  # type: ignore[no-untyped-call]
    yield
    for name, old in before.items():
        if old is None:
            del os.environ[name]
        else:
            os.environ[name] = old

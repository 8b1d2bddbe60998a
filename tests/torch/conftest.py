"""Tests of PyTorch models. They are not collected if PyTorch is not installed."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest

from tests.integration.conftest import programs  # noqa: F401 - a fixture
from tests.parity.checkpoints import make_checkpoint
from tests.parity.variants import VARIANTS

if importlib.util.find_spec("torch") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    with warnings.catch_warnings():  # packages of quantisation, which transformers imports where they are installed
        warnings.simplefilter("ignore")
        import transformers.modeling_utils  # noqa: F401


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random llama."""
    return make_checkpoint(VARIANTS["llama"], tmp_path_factory.mktemp("llama"))

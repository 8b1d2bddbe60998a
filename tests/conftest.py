"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def pages() -> Path:
    """The folder of the api pages that tests load models from."""
    return ROOT / "tests" / "pages"

"""Fixtures of the tests of models: a hub cache without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.models.hub_cache import COMMITS, add_snapshot


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set up an empty hub cache and no network in huggingface_hub, which reads its variables on import."""
    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    # Versions before 0.24 copy the constant into the module that uses it.
    monkeypatch.setattr("huggingface_hub._snapshot_download.HF_HUB_CACHE", str(cache), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def cached(hub: Path) -> dict[str, Path]:
    """Make a repository with two revisions, in the layout of the hub cache."""
    repository = hub / "models--acme--tiny"
    return {revision: add_snapshot(repository, revision, commit) for revision, commit in COMMITS.items()}

"""Write repositories into a hub cache of the tests."""

from __future__ import annotations

from pathlib import Path

COMMITS = {"main": "a" * 40, "older": "b" * 40}


def add_snapshot(repository: Path, revision: str, commit: str) -> Path:
    """Add a revision to a repository, in the layout of the hub cache, and return its snapshot."""
    reference = repository / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(revision.encode())
    return snapshot

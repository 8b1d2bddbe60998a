"""The options of a worker, and what of them reaches its model processes."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from birdie_zmq.cli.worker import _checkpoint_policy, _worker_config, parser
from birdie_zmq.errors import UsageError
from birdie_zmq.models.checkpoint_policy import CheckpointPolicy
from birdie_zmq.protocol.messages import WorkerConfig
from birdie_zmq.types import RankInfo


def options(*given: str) -> argparse.Namespace:
    return parser("worker").parse_args(given)


def test_a_worker_with_a_key_allows_only_the_demo_by_default(tmp_path: Path) -> None:
    assert _checkpoint_policy(options()) == CheckpointPolicy()
    assert _checkpoint_policy(options("--key-file", "k")) == CheckpointPolicy((), hub=False)
    assert _checkpoint_policy(options("--key-file", "k", "--hub")) == CheckpointPolicy((), hub=True)
    restricted = _checkpoint_policy(options("--key-file", "k", "--checkpoints", str(tmp_path)))
    assert restricted == CheckpointPolicy((tmp_path,), hub=False)


def test_invalid_checkpoint_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--hub adds to --checkpoints"):
        _checkpoint_policy(options("--hub"))
    with pytest.raises(UsageError, match="there is no folder at"):
        _checkpoint_policy(options("--checkpoints", str(tmp_path / "none")))


def test_model_processes_get_the_options_that_concern_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rank, policy = RankInfo(2, 0, "gpu0:1234"), CheckpointPolicy((tmp_path,), hub=False)
    assert _worker_config(options("--engine", "torch"), None, CheckpointPolicy()) == WorkerConfig(engine="torch")
    (tmp_path / "api.py").touch()
    assert _worker_config(options(), rank, policy) == WorkerConfig(
        engine="jax", api=str(tmp_path / "api.py"), rank=rank, checkpoint_folders=(str(tmp_path),), hub=False
    )
    assert _worker_config(options("--built-in"), None, policy).api is None


def test_a_process_group_needs_jax() -> None:
    with pytest.raises(UsageError, match="needs the engine jax, and this worker's engine is torch"):
        _worker_config(options("--engine", "torch"), RankInfo(2, 0), CheckpointPolicy())

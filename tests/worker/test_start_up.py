"""What a model process does with the options of its worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from birdie_zmq.models.checkpoint_policy import CheckpointPolicy, process_policy, set_process_policy
from birdie_zmq.protocol.messages import WorkerConfig
from birdie_zmq.settings import ENGINE_VARIABLE
from birdie_zmq.worker.start_up import apply_config


@pytest.fixture(autouse=True)
def _undo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(ENGINE_VARIABLE, "another")
    yield
    set_process_policy(CheckpointPolicy())


def test_user_modules_can_read_the_engine() -> None:
    assert apply_config(WorkerConfig(engine="jax")).name == "jax"
    assert os.environ[ENGINE_VARIABLE] == "jax"


def test_the_checkpoint_policy_holds_for_the_process() -> None:
    apply_config(WorkerConfig(engine="jax", checkpoint_folders=("/models",), hub=False))
    assert process_policy() == CheckpointPolicy((Path("/models"),), hub=False)
    apply_config(WorkerConfig(engine="jax", checkpoint_folders=()))
    assert process_policy() == CheckpointPolicy(())
    apply_config(WorkerConfig(engine="jax"))
    assert process_policy() == CheckpointPolicy()

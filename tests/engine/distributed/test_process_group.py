"""The rank that a worker's options name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from birdie_zmq.engine.distributed.process_group import find_rank
from birdie_zmq.errors import UsageError
from birdie_zmq.types import RankInfo

SLURM = {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}


def found(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    distributed: bool = False,
    timeout_s: float = 300.0,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> RankInfo | None:
    return find_rank(
        coordinator, num_processes, process_id, distributed=distributed, timeout_s=timeout_s, environment=environment
    )


def test_no_options_mean_no_process_group() -> None:
    assert found(environment=SLURM) is None


def test_rank_of_the_options() -> None:
    rank = found("gpu0:1234", 2, 1)
    assert rank == RankInfo(2, 1, "gpu0:1234", 300.0)
    assert not rank.is_leader


def test_missing_options_come_from_slurm_step_before_job() -> None:
    assert found(distributed=True, environment=SLURM) == RankInfo(4, 3)
    assert found(distributed=True, environment={"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) == RankInfo(8, 0)
    assert found("gpu0:1", 5, 4, distributed=True, environment=SLURM) == RankInfo(5, 4, "gpu0:1")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "gpu0:1234"}, "--coordinator also needs --num-processes and --process-id"),
        ({"num_processes": 2, "process_id": 0}, "--num-processes and --process-id also needs --coordinator"),
        ({"distributed": True}, "SLURM_STEP_NUM_TASKS or SLURM_NTASKS is not set"),
        (
            {"distributed": True, "environment": {"SLURM_NTASKS": "two"}},
            "SLURM_STEP_NUM_TASKS or SLURM_NTASKS is not set",
        ),
        ({"coordinator": "gpu0:1", "num_processes": 2, "process_id": 2}, "no process 2 of 2"),
        ({"coordinator": "gpu0:1", "num_processes": 2, "process_id": -1}, "no process -1 of 2"),
        ({"coordinator": "gpu0", "num_processes": 2, "process_id": 0}, "'gpu0' is not HOST:PORT"),
        ({"coordinator": "gpu0:0", "num_processes": 2, "process_id": 0}, "'gpu0:0' is not HOST:PORT"),
        ({"coordinator": "gpu0:1", "num_processes": 2, "process_id": 0, "timeout_s": 0.0}, "above 0 seconds"),
    ],
)
def test_invalid_rank_options_are_rejected(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        found(**given)

"""The rank of a process in a process group: one process per host, all of them holding one model. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from birdie_zmq.errors import UsageError

VARIABLE = "BIRDIE_ZMQ_GROUP"
"""The variable by which an agent passes its model process the rank."""

USER_MODULE_VARIABLE = "BIRDIE_ZMQ_GROUP_PAGE"
"""The variable by which a follower's agent passes its model process the user module; unset for built-in models."""

DEFAULT_TIMEOUT_S = 300.0
"""How long the processes wait for each other to join, as in JAX."""

GROUP_ENDED_EXIT_STATUS = 75
"""The exit status of a model process whose group has ended, or cannot continue (EX_TEMPFAIL of sysexits.h)."""

_SLURM_COUNTS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
_SLURM_RANK = "SLURM_PROCID"


class ProcessGroupError(Exception):
    """The ranks of the process group no longer make the same calls: this process must end, and the group with it."""


class LeaderLost(ProcessGroupError):
    """The process of rank 0 is gone, and the key-value store with it."""


@dataclass(frozen=True)
class RankInfo:
    """The rank of a process, and its process group.

    Attributes:
        num_processes: The number of processes, as in jax.distributed.initialize.
        process_id: The rank of this process; rank 0 is the leader, which talks to the broker.
        coordinator: HOST:PORT of process 0; None lets JAX detect it, as in a Slurm job.
        timeout_s: How long the processes wait for each other to join.
    """

    num_processes: int
    process_id: int
    coordinator: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S

    @property
    def is_leader(self) -> bool:
        """Whether this process is rank 0, which talks to the broker."""
        return self.process_id == 0

    def as_variable(self) -> dict[str, str]:
        """Return the environment variable that passes the rank to the model process."""
        return {VARIABLE: msgspec.json.encode(self).decode()}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> RankInfo | None:
        """Return the rank in the environment variable, or None if it is not set."""
        value = environment.get(VARIABLE)
        return None if value is None else msgspec.json.decode(value, type=cls)

    def __str__(self) -> str:
        return f"process {self.process_id} of {self.num_processes}"


def find_rank(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    distributed: bool,
    timeout_s: float,
    environment: Mapping[str, str],
) -> RankInfo | None:
    """Return the rank that the options of a worker's command give, or None if there is no such option.

    Args:
        coordinator: ``--coordinator``.
        num_processes: ``--num-processes``.
        process_id: ``--process-id``.
        distributed: ``--distributed``: options that are not given are read from Slurm's variables.
        timeout_s: ``--initialization-timeout``.
        environment: The environment variables of the worker.

    Raises:
        UsageError: An option is missing or invalid.
    """
    if not distributed:
        given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
        missing = [name for name, value in given.items() if value is None]
        if len(missing) == len(given):
            return None
        if missing:
            raise UsageError(
                f"{' and '.join(name for name in given if name not in missing)} also needs {' and '.join(missing)}: "
                "each process of a group needs the address of process 0, the number of processes and its own rank "
                "(--distributed reads missing options from Slurm)"
            )
    if num_processes is None:
        num_processes = _from_slurm("--num-processes", _SLURM_COUNTS, environment)
    if process_id is None:
        process_id = _from_slurm("--process-id", (_SLURM_RANK,), environment)
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise UsageError(
            f"there is no process {process_id} of {num_processes}: --process-id must be from 0 to --num-processes minus 1"
        )
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UsageError(f"--coordinator {coordinator!r} is not HOST:PORT, for example gpu0:1234")
    if timeout_s <= 0:
        raise UsageError(f"--initialization-timeout must be above 0 seconds, not {timeout_s:g}")
    return RankInfo(num_processes, process_id, coordinator, timeout_s)


def _from_slurm(option: str, variables: tuple[str, ...], environment: Mapping[str, str]) -> int:
    for name in variables:
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    raise UsageError(
        f"--distributed reads missing options from Slurm, but {' or '.join(variables)} is not set here; start the worker "
        f"with srun, or give {option}"
    )

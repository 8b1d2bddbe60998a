"""The place of a process in a group of processes, one per host, that hold one model together under jax.distributed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from birdie_zmq.errors import UsageError

VARIABLE = "BIRDIE_ZMQ_GROUP"
"""The variable by which an agent tells its model process its place."""

PAGE_VARIABLE = "BIRDIE_ZMQ_GROUP_PAGE"
"""The variable by which a follower's agent tells its model process the page; not set for the built-in one."""

DEFAULT_TIMEOUT_S = 300.0
"""How long the processes wait for each other, as in JAX."""

GROUP_ENDED = 75
"""The exit status of a model process whose group has ended, or can no longer go on (EX_TEMPFAIL of sysexits.h)."""

_SLURM_COUNTS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
_SLURM_NUMBER = "SLURM_PROCID"


class GroupBroken(Exception):
    """The processes of the group no longer do the same: this one must end, and with it the group."""


class LeaderLost(GroupBroken):
    """The process that leads is gone, and with it what the others hear from."""


@dataclass(frozen=True)
class RankInfo:
    """Which process of how many this is.

    Attributes:
        num_processes: How many there are, as in jax.distributed.initialize.
        process_id: The number of this one; 0 leads, and talks to the broker.
        coordinator: HOST:PORT at which process 0 is met; None lets JAX find it, as in a job of Slurm.
        timeout_s: How long they wait for each other.
    """

    num_processes: int
    process_id: int
    coordinator: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S

    @property
    def leads(self) -> bool:
        """Whether this is the one that talks to the broker."""
        return self.process_id == 0

    def as_variable(self) -> dict[str, str]:
        """What tells the model process."""
        return {VARIABLE: msgspec.json.encode(self).decode()}

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> RankInfo | None:
        """The place that the variable tells; None where there is none."""
        told = environment.get(VARIABLE)
        return None if told is None else msgspec.json.decode(told, type=cls)

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
    """The place that the options of a worker's command give; None where none of them is there.

    Args:
        coordinator: ``--coordinator``.
        num_processes: ``--num-processes``.
        process_id: ``--process-id``.
        distributed: ``--distributed``: what is not given is taken from Slurm's variables.
        timeout_s: ``--initialization-timeout``.
        environment: The worker's variables.

    Raises:
        UsageError: Something is missing, or no such place exists.
    """
    if not distributed:
        given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
        missing = [name for name, value in given.items() if value is None]
        if len(missing) == len(given):
            return None
        if missing:
            raise UsageError(
                f"{' and '.join(name for name in given if name not in missing)} also needs {' and '.join(missing)}: "
                "each process of a group is told where process 0 is met, how many they are, and its own number "
                "(--distributed takes from Slurm what is not given)"
            )
    if num_processes is None:
        num_processes = _of_slurm("--num-processes", _SLURM_COUNTS, environment)
    if process_id is None:
        process_id = _of_slurm("--process-id", (_SLURM_NUMBER,), environment)
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise UsageError(
            f"there is no process {process_id} of {num_processes}: --process-id counts from 0 to --num-processes less 1"
        )
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UsageError(f"--coordinator {coordinator!r} is not HOST:PORT, such as gpu0:1234")
    if timeout_s <= 0:
        raise UsageError(f"--initialization-timeout must be above 0 seconds, not {timeout_s:g}")
    return RankInfo(num_processes, process_id, coordinator, timeout_s)


def _of_slurm(option: str, variables: tuple[str, ...], environment: Mapping[str, str]) -> int:
    for name in variables:
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    raise UsageError(
        f"--distributed takes from Slurm what is not given, and {' or '.join(variables)} is not set here; start the worker "
        f"with srun, or say {option}"
    )

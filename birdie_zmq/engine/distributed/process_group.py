"""Process groups: the rank that a worker's options give, and the errors that end a group. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from birdie_zmq.errors import UsageError
from birdie_zmq.types import RankInfo

GROUP_ENDED_EXIT_STATUS = 75
"""The exit status of a model process whose group has ended, or cannot continue (EX_TEMPFAIL of sysexits.h)."""

_SLURM_COUNTS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
_SLURM_RANK = "SLURM_PROCID"


class ProcessGroupError(Exception):
    """The ranks of the process group no longer make the same calls: this process must end, and the group with it."""


class LeaderLost(ProcessGroupError):
    """The process of rank 0 is gone, and the key-value store with it."""


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

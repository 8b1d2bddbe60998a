"""Checks and preparations for a model that lm_eval itself creates, with ``--model birdie_zmq``."""

from __future__ import annotations

import abc
import logging
import os
from collections.abc import Mapping
from typing import Any, Self

from lm_eval.api.model import LM

from birdie_zmq.errors import UsageError
from birdie_zmq.harness.preflight import task_metadata

logger = logging.getLogger("lm_eval.birdie_zmq")


class LaunchedModel(LM):
    """A model that lm_eval itself may create, for ``--model birdie_zmq``: the run of such a model is checked and prepared."""

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """Create the model for lm_eval, and leave the GPUs to the embedded worker.

        Raises:
            UsageError: lm_eval was started as several processes.
        """
        check_single_process(os.environ)
        created = super().create_from_arg_obj(arg_dict, additional_config)
        pass_model_name(arg_dict, task_metadata())
        created._leave_gpus_to_worker()
        return created

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """Create the model for lm_eval from ``a=b,c=d``, as `create_from_arg_obj` does."""
        check_single_process(os.environ)
        warn_of_missing_name(arg_string)
        created = super().create_from_arg_string(arg_string, additional_config)
        created._leave_gpus_to_worker()
        return created

    @abc.abstractmethod
    def _leave_gpus_to_worker(self) -> None:
        """Hide the GPUs from this process, if a worker on this machine needs them."""


_LAUNCHERS = (
    ("WORLD_SIZE", ("RANK", "LOCAL_RANK"), "torchrun or accelerate launch"),
    ("SLURM_STEP_NUM_TASKS", ("SLURM_PROCID",), "srun"),
    ("OMPI_COMM_WORLD_SIZE", ("OMPI_COMM_WORLD_RANK",), "mpirun"),
    ("PMI_SIZE", ("PMI_RANK",), "mpiexec"),
)
"""The variables of launchers with the number of processes and with the rank of this one, and the name of the launcher."""

_NAMES = ("peft", "delta", "pretrained", "model", "path", "engine")
"""The arguments that lm_eval names its results folder after; the first one that is present counts."""


def check_single_process(environment: Mapping[str, str]) -> None:
    """Check that lm_eval was not started as several processes: each would load the model and compute everything.

    lm_eval 0.4 writes the results of the process whose LOCAL_RANK is 0, and later versions write those of all processes to
    the same folder.

    Raises:
        UsageError: A launcher has started several processes, or LOCAL_RANK would make lm_eval drop the results.
    """
    for size, ranks, launcher in _LAUNCHERS:
        rank = next((name for name in ranks if name in environment), None)
        if rank is not None and _number(environment.get(size)) > 1:
            raise UsageError(
                f"lm_eval was started as {environment[size]} processes ({size}={environment[size]}, {rank}="
                f"{environment[rank]}, as {launcher} sets them). Each of them would load the model and compute all "
                "requests, and lm_eval would not merge their results. Start lm_eval once, without the launcher: "
                "mesh=data:N/model:M in model_args uses several devices, and several workers at one broker use several "
                "machines"
            )
    if _number(environment.get("LOCAL_RANK")) > 0:
        raise UsageError(
            f"LOCAL_RANK={environment['LOCAL_RANK']} is set, with which lm_eval 0.4 writes no results at the end of a run; "
            "unset LOCAL_RANK, and start lm_eval once"
        )


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def pass_model_name(model_args: dict[str, Any], task_metadata: object) -> None:
    """Give lm_eval the name of the model where only ``model_tag`` holds it, by adding the equal ``pretrained``.

    lm_eval reads `model_args` again after it has created the model, to name the results folder. Tasks that measure texts with
    a tokenizer, such as RULER, read ``pretrained`` of `task_metadata`.

    Args:
        model_args: The arguments as lm_eval holds them; modified.
        task_metadata: The metadata of lm_eval's task manager, a copy of the arguments; modified. None if it has none.
    """
    tag = model_args.get("model_tag")
    if tag is None:
        return
    model_args.setdefault("pretrained", tag)
    if isinstance(task_metadata, dict) and task_metadata.get("model_tag") == tag:
        task_metadata.setdefault("pretrained", tag)


def warn_of_missing_name(model_args: str) -> None:
    """Warn that lm_eval finds no name of the model in arguments that were passed as a text."""
    named = next((name for name in _NAMES if f"{name}=" in model_args), None)
    if named in (None, "engine") and "model_tag=" in model_args:
        logger.warning(
            "lm_eval finds no name of the model in model_args=%r, so the name of its results folder will not contain it; "
            "write pretrained= in place of model_tag=, or pass model_args as a dict",
            model_args,
        )

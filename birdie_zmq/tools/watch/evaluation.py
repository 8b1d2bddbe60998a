"""Evaluates a checkpoint as the ``lm_eval`` command does, with the options of that command."""

from __future__ import annotations

import argparse
import contextlib
import copy
import inspect
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import lm_eval
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.loggers.evaluation_tracker import EvaluationTracker

from birdie_zmq.client.embedded import EmbeddedProcesses
from birdie_zmq.client.journal import Journal
from birdie_zmq.client.journal_records import DATE_KEY
from birdie_zmq.errors import UsageError
from birdie_zmq.harness.checkpoint_model import CheckpointModel
from birdie_zmq.harness.connection import start_processes
from birdie_zmq.harness.launch import check_single_process
from birdie_zmq.harness.model_args import parse_model_args
from birdie_zmq.tools.watch.core import Sighting
from birdie_zmq.tools.watch.results import Measured, metrics_of
from birdie_zmq.worker.devices import process_gpus

_ARGUMENTS = (
    *("tasks", "num_fewshot", "limit", "samples", "repeats", "write_out", "log_samples", "system_instruction"),
    *("apply_chat_template", "fewshot_as_multiturn", "gen_kwargs", "verbosity", "predict_only"),
    *("confirm_run_unsafe_code", "metadata"),
)
"""The arguments of `lm_eval.simple_evaluate` that are fields of lm_eval's configuration; `repeats` is new in lm_eval 0.5."""

_SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")

REFUSED = {
    "model": "the model is always birdie_zmq",
    "config": "give the options themselves",
    "use_cache": "the watch keeps a journal of its own",
    "output_path": "lm_eval's results go to the folder of --output",
    "hf_hub_log_args": "upload the folder of --output",
    "show_config": "lm_eval's results go to the folder of --output",
    "check_integrity": "run it once with lm_eval",
}
"""Options of ``lm_eval run`` that a watch does not have, with what to do."""

_NOT_SETTINGS = {
    *("wandb_args", "wandb_config_args", "trackio_args", "verbosity", "device", "batch_size", "max_batch_size", "func"),
    *("command", "write_out", "log_samples", "trust_remote_code", "cache_requests", "model_args", *REFUSED),
}
"""Options of ``lm_eval run`` that change no score."""
_NOT_SETTINGS_OF_MODEL = {
    *("endpoint", "port", "key_file", "allow_group_readable_keys", "status_port", "resume", "batch_rows")
}

_PLACEHOLDER = "CHECKPOINT"


@dataclass(frozen=True)
class Evaluated:
    """What lm_eval returned for a checkpoint, and what a watch records of it."""

    results: Mapping[str, Any]
    measured: Measured


class Evaluation:
    """Evaluates checkpoints one after another, with one embedded broker and worker or at a running broker.

    Args:
        options: The options of ``lm_eval run``, parsed by its own parser.
        folder: The output folder.

    Attributes:
        config: lm_eval's configuration, made of the options.

    Raises:
        UsageError: An option is wrong, or there is no such task.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        check_single_process(os.environ)
        self._options = options
        self._folder = folder
        self._journal = folder / "answers.journal"
        self._model_args = dict(getattr(options, "model_args", None) or {})
        _check_options(options, self._model_args)
        # lm_eval takes seconds to find its tasks, so one task manager serves all checkpoints.
        self.config, self._task_manager = _configure(options, {**self._model_args, "pretrained": _PLACEHOLDER})
        config = self.config
        self._arguments = parse_model_args(
            {**self._model_args, "pretrained": _PLACEHOLDER},
            batch_size=config.batch_size,
            max_batch_size=config.max_batch_size,
            device=config.device,
        )
        self._resources = contextlib.ExitStack()
        self._processes: EmbeddedProcesses | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The options that a score depends on, as JSON values."""
        given = {name: value for name, value in vars(self._options).items() if name not in _NOT_SETTINGS and value}
        model_args = {name: value for name, value in self._model_args.items() if name not in _NOT_SETTINGS_OF_MODEL}
        # As text: the values may have any type that lm_eval's parser returns.
        return {name: str(value) for name, value in sorted({**given, "model_args": model_args}.items())}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._resources.close()

    def evaluate(self, sighting: Sighting) -> Evaluated:
        """Evaluate a checkpoint; its answers are in the journal until `forget_answers`.

        Raises:
            ModelError: The checkpoint cannot be loaded, or its model cannot compute.
            BirdieError: Something else is at fault, such as a broker that does not answer.
        """
        began = time.monotonic()
        self._start()
        config = self.config
        # Tasks that measure texts with the tokenizer read its name here; the task manager holds this very object.
        config.metadata["pretrained"] = sighting.path
        # As of the lm_eval command, so that the results file of a step is the same.
        tracker = EvaluationTracker(output_path=str(self._folder / "lm_eval"))
        model_args = {**self._model_args, "pretrained": sighting.path, "resume": str(self._journal)}
        batch_size, max_batch_size, device = config.batch_size, config.max_batch_size, config.device
        with CheckpointModel(self._processes, batch_size, max_batch_size, device, **model_args) as lm:
            results = lm_eval.simple_evaluate(
                lm,
                {"pretrained": sighting.path},  # only names the folder of the results
                task_manager=self._task_manager,
                evaluation_tracker=tracker,
                **_evaluate_arguments(config),
            )
            info = lm.get_model_info()
        assert results is not None
        samples = results.pop("samples", None)
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"] if config.log_samples else ():
            tracker.save_results_samples(task_name=task, samples=samples[task])
        steps = info["model_steps"]
        details = {
            "identity": info["model_identity"],
            "seconds": round(time.monotonic() - began, 2),
            "computing_seconds": round(steps["seconds"], 3),
            "compile_seconds": round(steps["compile_seconds"], 3),
            "resumed_answers": info["model_resumed_answers"],
            "retries": info["model_losses"],
        }
        return Evaluated(results, Measured(metrics_of(sighting.step, results["results"]), details))

    def forget_answers(self) -> None:
        """Empty the journal after a checkpoint is recorded, but keep the date that chat templates write into prompts."""
        with contextlib.closing(Journal(self._journal)) as journal:
            date = journal.scan([DATE_KEY]).answers.get(DATE_KEY)
        emptied = self._journal.with_suffix(".new")
        emptied.unlink(missing_ok=True)
        with contextlib.closing(Journal(emptied)) as journal:
            if date is not None:
                journal.append(DATE_KEY, date)
        emptied.replace(self._journal)

    def _start(self) -> None:
        """Start the embedded broker and worker with the first checkpoint, unless there is a running broker."""
        if self._processes is None and self._arguments.endpoint is None:
            self._processes = start_processes(self._arguments, swap_weights=self._arguments.api is None)
            self._resources.callback(self._processes.close)
            # A metric may import torch or jax, and take memory of the GPU that the worker needs.
            process_gpus.hide()
            self._resources.callback(process_gpus.restore)


def _configure(options: argparse.Namespace, model_args: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return lm_eval's configuration for its options, and its task manager, which holds the configuration's metadata.

    Raises:
        UsageError: lm_eval refuses an option, or there is no such task.
    """
    try:
        config = EvaluatorConfig.from_cli(argparse.Namespace(**{**vars(options), "model_args": dict(model_args)}))
        return config, config.process_tasks(config.metadata)
    except ValueError as error:
        raise UsageError(f"lm_eval: {error}") from error


def _evaluate_arguments(config: Any) -> dict[str, Any]:
    """Return the arguments of `lm_eval.simple_evaluate` that a configuration sets, as the lm_eval command passes them."""
    names = inspect.signature(lm_eval.simple_evaluate).parameters
    arguments = {name: getattr(config, name) for name in _ARGUMENTS if name in names and hasattr(config, name)}
    # A copy: lm_eval changes some of them.
    copied: dict[str, Any] = copy.deepcopy(arguments)
    return copied | dict(zip(_SEEDS, config.seed or (None,) * len(_SEEDS), strict=True))


def _check_options(options: argparse.Namespace, model_args: Mapping[str, Any]) -> None:
    """Check the options of ``lm_eval run`` for those that a watch does not have.

    Raises:
        UsageError: There is one, or no task.
    """
    for name, advice in REFUSED.items():
        if getattr(options, name, None) not in (None, False, {}):
            raise UsageError(f"--{name} of lm_eval cannot be used here: {advice}")
    if not getattr(options, "tasks", None):
        raise UsageError("--tasks is missing: name the tasks, as for lm_eval")
    taken = sorted({"pretrained", "model_tag", "resume"} & model_args.keys())
    if taken:
        raise UsageError(
            f"{taken[0]}= in model_args cannot be used here: the watch sets it for each checkpoint; give the other arguments"
        )

"""Opens the client of a run: of a running broker, of an embedded broker and worker, or of a model of this process."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from birdie_zmq.client import Client
from birdie_zmq.client.embedded import CONNECT_S, EmbeddedProcesses, WorkerOptions
from birdie_zmq.errors import UsageError
from birdie_zmq.harness.model_args import RunArguments
from birdie_zmq.inprocess.client import InProcessClient
from birdie_zmq.settings import ClientSettings
from birdie_zmq.worker.devices import device_of_lm_eval

logger = logging.getLogger("lm_eval.birdie_zmq")


def connect(
    arguments: RunArguments, settings: ClientSettings | None, resources: contextlib.ExitStack
) -> tuple[Client, EmbeddedProcesses | None]:
    """Return a client of the broker in model_args, or of an embedded broker with an embedded worker.

    Args:
        arguments: The arguments of the run.
        settings: Timeouts and batch sizes; None for the defaults, with more time for an embedded broker to start.
        resources: Closes the client, and then the embedded processes.

    Returns:
        The client, and the embedded broker and worker; None for a running broker.

    Raises:
        UsageError: The endpoint or the key file is invalid or cannot be read.
    """
    if arguments.endpoint is not None:
        return resources.enter_context(open_client(arguments, settings)), None
    embedded = start_processes(arguments)
    resources.callback(embedded.close)
    return resources.enter_context(open_client(arguments, settings, embedded)), embedded


def start_processes(arguments: RunArguments, *, swap_weights: bool = False) -> EmbeddedProcesses:
    """Start the embedded broker and worker of a run.

    Args:
        arguments: The arguments of the run.
        swap_weights: Whether the worker may load other weights of the same model into a running model process.
    """
    device = arguments.device
    # lm_eval fills in one GPU if --device is not given, but a mesh needs to see all GPUs.
    worker_device = None if arguments.mesh is not None and device != "cpu" else device_of_lm_eval(device)
    options = WorkerOptions(arguments.api, worker_device, arguments.engine, swap_weights)
    verbose = logger.isEnabledFor(logging.DEBUG)  # then the embedded processes log information too
    return EmbeddedProcesses(options, verbose, arguments.status_port)


def open_client(
    arguments: RunArguments, settings: ClientSettings | None, embedded: EmbeddedProcesses | None = None
) -> Client:
    """Return a client of the embedded processes, or of the broker in the arguments.

    Raises:
        UsageError: The endpoint or the key file is invalid or cannot be read.
    """
    endpoint = arguments.endpoint
    if embedded is not None:
        embedded.begin_run()
        endpoint = embedded.endpoint
        settings = settings or ClientSettings(connect_s=CONNECT_S)
    assert endpoint is not None
    return Client(
        endpoint,
        arguments.model,
        arguments.limits,
        settings,
        embedded,
        arguments.key_file,
        arguments.allow_group_readable_keys,
    )


def open_in_process(arguments: RunArguments, model: Any, tokenizer: Any, max_failed_items: int) -> InProcessClient:
    """Return a client of a model of this process.

    Raises:
        UsageError: The run stores answers for later runs, but the model has no fingerprint.
        ModelError: The model or the tokenizer cannot be used.
    """
    client = InProcessClient(arguments.model, model, tokenizer, arguments.limits, max_failed_items, arguments.engine)
    if arguments.resume is not None and not client.has_fingerprint:
        raise UsageError(
            "resume= stores answers for later runs, which must know that the weights are the same: pass "
            "birdie_zmq.Model(…, fingerprint=…)"
        )
    return client

"""The model of one of many checkpoints, evaluated one after another with the same embedded broker and worker."""

from __future__ import annotations

import contextlib
from typing import Any

from birdie_zmq.client import Client
from birdie_zmq.client.embedded import EmbeddedProcesses
from birdie_zmq.harness.connection import open_client
from birdie_zmq.harness.model import BirdieZMQ
from birdie_zmq.harness.model_args import RunArguments
from birdie_zmq.settings import ClientSettings


class CheckpointModel(BirdieZMQ):
    """A `BirdieZMQ` that does not own its broker and worker; closing it closes its session only.

    Args:
        processes: The embedded broker and worker; None for the running broker that the model_args name.
        batch_size: As of `BirdieZMQ`.
        max_batch_size: As of `BirdieZMQ`.
        device: As of `BirdieZMQ`.
        **model_args: As of `BirdieZMQ`.
    """

    def __init__(
        self,
        processes: EmbeddedProcesses | None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **model_args: Any,
    ) -> None:
        self._processes = processes
        super().__init__(batch_size, max_batch_size, device, **model_args)

    def _connect(
        self, arguments: RunArguments, settings: ClientSettings | None, resources: contextlib.ExitStack
    ) -> tuple[Client, EmbeddedProcesses | None]:
        return resources.enter_context(open_client(arguments, settings, self._processes)), None

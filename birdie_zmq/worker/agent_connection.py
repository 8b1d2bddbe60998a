"""The sending side of a model process's channel to its agent, with its heartbeats."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable

from birdie_zmq.errors import InternalError
from birdie_zmq.protocol import messages as m
from birdie_zmq.types import ComputeCounters
from birdie_zmq.worker.channel import Channel

_HEARTBEAT_S = 1.0


class AgentConnection:
    """The sending side of the channel to the agent; thread-safe.

    Args:
        channel: The channel.

    Attributes:
        computed: Returns the counters that heartbeats carry; zero until the model is loaded.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._steps = 0
        self.computed: Callable[[], ComputeCounters] = ComputeCounters

    def send(self, message: m.ModelProcessMessage) -> None:
        """Send a whole message."""
        with self._lock:
            self._channel.send(message)

    def count_step(self) -> None:
        """Count a step, which the next heartbeat reports as progress."""
        self._steps += 1

    def send_heartbeats(self) -> None:
        """Send heartbeats with the number of steps and the counters, for as long as the process runs."""
        while True:
            self.send(m.ModelHeartbeat(steps=self._steps, computed=self.computed()))
            time.sleep(_HEARTBEAT_S)


def internal_error(error: Exception) -> InternalError:
    """Return the error for one that no part of this package expects.

    Its message may quote a text of a request, so it is in the traceback only, which goes to the run and to no log.
    """
    text = f"birdie-zmq failed in the model process with {type(error).__name__}; see the traceback"
    return InternalError(text, remote_traceback="".join(traceback.format_exception(error)))

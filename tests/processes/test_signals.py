"""The names of signals, for messages about processes that a signal has ended."""

from __future__ import annotations

import signal

from birdie_zmq.processes.signals import signal_name


def test_every_signal_has_a_name() -> None:
    assert signal_name(signal.SIGKILL) == "SIGKILL"
    assert signal_name(63) == "signal 63"  # a real-time signal, which Python does not name

"""Evaluation inside of a training loop: callbacks that evaluate the params of a step.

`InProcessEvaluation` evaluates them in the process that trains, while the loop waits. `WorkerEvaluation` saves them for
``birdie-zmq watch``, which evaluates them in other processes, on other devices, while the loop goes on. Both call `log` with
the step and a flat mapping such as ``{"demo_rolling/byte_perplexity": 2.1}``, as trackers take it.

`TunixHooks` and `LevanterHook` call either in the loops of Tunix and Levanter.
"""

from birdie_zmq.training.by_worker import WorkerEvaluation
from birdie_zmq.training.common import Log
from birdie_zmq.training.in_process import InProcessEvaluation
from birdie_zmq.training.trainers import LevanterHook, TunixHooks

__all__ = ["InProcessEvaluation", "LevanterHook", "Log", "TunixHooks", "WorkerEvaluation"]

"""The callbacks in the loops of Tunix and Levanter, whose interfaces are met without importing either.

Both give the step and the model to an evaluation once for each step: `birdie_zmq.training.InProcessEvaluation`,
`birdie_zmq.training.WorkerEvaluation`, or any function of a step and a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Evaluate = Callable[[int, Any], object]
"""Is called with the number of steps and the model."""


class TunixHooks:
    """The training hooks of a Tunix trainer: ``trainer.with_training_hooks(TunixHooks(evaluate))``.

    A model counts as that of step N after N updates, as in the names of Tunix's checkpoints. Tunix calls its hook for the
    end of a step after the next update has been made, so the model is evaluated when the next step begins, and at the end.

    Args:
        evaluate: Is called with the step and the trainer's model, an ``nnx.Module``.
    """

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._last = 0

    def on_train_start(self, train_ctx: Any) -> None:
        """Take the step with which the training continues as evaluated."""
        self._last = train_ctx.train_steps

    def on_train_step_start(self, train_ctx: Any) -> None:
        """Evaluate the model of the step before."""
        self._evaluate_once(train_ctx)

    def on_train_step_end(self, train_ctx: Any, train_step: int, train_loss: float) -> None:
        """Do nothing: the model has been updated since that step."""

    def on_train_end(self, train_ctx: Any) -> None:
        """Evaluate the model of the last step."""
        self._evaluate_once(train_ctx)

    def on_eval_step_start(self, train_ctx: Any) -> None:
        """Do nothing."""

    def on_eval_step_end(self, train_ctx: Any, eval_loss: float) -> None:
        """Do nothing."""

    def _evaluate_once(self, trainer: Any) -> None:
        # With gradients that are accumulated, several steps of the loop make one update.
        if trainer.train_steps > self._last:
            self._last = trainer.train_steps
            self._evaluate(trainer.train_steps, trainer.model)


class LevanterHook:
    """A hook of Levanter's trainer: ``trainer.add_hook(LevanterHook(evaluate), every=1)``.

    Steps are numbered as in the names of Levanter's checkpoints and in its trackers, from 0. Levanter calls no hook for the
    steps 0 and 1. At the end it calls all hooks once more for the last step, which is not evaluated twice.

    Args:
        evaluate: Is called with the step and the model that Levanter evaluates, which has averaged weights if the trainer
            keeps them.
    """

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._last = -1

    def __call__(self, info: Any) -> None:
        """Evaluate the model of a step, given Levanter's ``StepInfo``."""
        if info.step > self._last:
            self._last = info.step
            self._evaluate(info.step, info.eval_model)

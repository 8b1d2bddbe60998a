"""Evaluate JAX language models with lm_eval, over ZeroMQ."""

from birdie_zmq._version import __version__
from birdie_zmq.engine.model_api import Model

__all__ = ["Model", "__version__"]

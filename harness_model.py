"""lm_eval's ``--model birdie_zmq``: the name under which lm_eval and programs import the model class."""

from birdie_zmq.harness.model import BirdieZMQ

__all__ = ["BirdieZMQ"]

"""The model class of lm_eval's ``--model birdie_zmq``, as lm_eval and user programs import it."""

from birdie_zmq.harness.model import BirdieZMQ

__all__ = ["BirdieZMQ"]

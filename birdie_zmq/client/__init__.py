"""The synchronous client: a pure state machine (`state`) and the socket under it (`client`)."""

from birdie_zmq.client.client import Client

__all__ = ["Client"]

"""The synchronous client: a pure state machine (`core`) and the I/O around it (`client`)."""

from birdie_zmq.client.client import Client

__all__ = ["Client"]

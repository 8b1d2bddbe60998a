"""The broker: a pure state machine (`core`) and the server that gives it a socket and a clock (`server`)."""

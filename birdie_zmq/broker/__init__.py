"""The broker: a pure state machine (`state`) and the loop that gives it a socket and a clock (`loop`)."""

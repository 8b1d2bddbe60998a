"""Processes: starting, stopping and restarting a child, ending with the parent, signals, and the ticks of a loop."""

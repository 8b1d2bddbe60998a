"""Measurements, to be run by hand: each module is a command."""

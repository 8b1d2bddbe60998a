"""Benchmarks that are run by hand; each module is a command."""

"""Measure built-in models on the GPU of this machine, in 15 minutes: ``python -m benchmarks.on_gpu``."""

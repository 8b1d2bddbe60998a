"""One module for each kind of worker, to be started with ``python -m``."""

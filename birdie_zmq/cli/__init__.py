"""The commands: ``birdie-zmq`` and its subcommands, ``broker.py`` and ``workers/*.py``, one module each."""

"""``python -m birdie_zmq`` is the command ``birdie-zmq``."""

from birdie_zmq.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())

"""Entry point of ``python -m birdie_zmq``, the same as the command ``birdie-zmq``."""

from birdie_zmq.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())

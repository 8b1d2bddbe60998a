"""Start a broker: ``python broker.py [--bind tcp://127.0.0.1:5555]``."""

from birdie_zmq.cli.broker import main

if __name__ == "__main__":
    raise SystemExit(main())

"""Start a JAX worker: ``python -m workers.jax_worker [--connect tcp://127.0.0.1:5555] [--api PATH] [--device cpu|N]``."""

from birdie_zmq.cli.worker import main

if __name__ == "__main__":
    raise SystemExit(main())

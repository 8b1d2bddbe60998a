"""Start a JAX worker: ``python -m workers.jax_worker [--connect tcp://127.0.0.1:5555] [--api PATH] [--device cpu|N]``."""

from birdie_zmq.cli.main import worker

if __name__ == "__main__":
    raise SystemExit(worker())

"""Start a PyTorch worker: ``python -m workers.torch_worker [--connect ENDPOINT] [--api PATH] [--device cpu|N]``."""

from birdie_zmq.cli.main import worker

if __name__ == "__main__":
    raise SystemExit(worker(prog="workers.torch_worker", engine="torch"))

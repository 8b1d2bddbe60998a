"""Start a PyTorch worker: ``python -m workers.torch_worker [--connect ENDPOINT] [--api PATH] [--device cpu|N]``."""

from birdie_zmq.cli.worker import main

if __name__ == "__main__":
    raise SystemExit(main(prog="workers.torch_worker", engine="torch"))

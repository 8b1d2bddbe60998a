"""lm_eval's own hf backend in a child process, for benchmarks that compare it with this project.

In one process on a GPU, torch and JAX would compete for memory. So requests go to the child as lines of JSON on its
standard input, and answers return on its standard output. The child measures its own time, which therefore excludes the
pipe. Between requests it waits and computes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self


class Timed(NamedTuple):
    """The seconds of one call, and an answer per request: a log-likelihood in nats, or a text."""

    seconds: float
    answers: list[Any]


class TorchPeer:
    """The parent's side of the child process.

    Args:
        model: A Hugging Face directory.
        device: ``cpu`` or ``gpu``.
        threads: Number of threads for torch.
        batch_size: Batch size of hf.
        dtype: The dtype of the weights.

    Attributes:
        versions: One line with the versions of torch and transformers, and the number of threads.
    """

    def __init__(self, model: str, device: str, threads: int, batch_size: int, dtype: str = "float32") -> None:
        options = ["--model", model, "--device", device, "--threads", str(threads), "--batch-size", str(batch_size)]
        options += ["--dtype", dtype]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.torch_peer", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            self.versions = str(self._receive())
        except BaseException:
            self.close()
            raise

    def answer(self, kind: str, arguments: Sequence[Sequence[Any]]) -> Timed:
        """Run requests of a kind in hf: ``loglikelihood``, ``loglikelihood_rolling`` or ``generate_until``."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([kind, arguments]) + "\n")
        self._process.stdin.flush()
        return Timed(*self._receive())

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the hf process ended with exit status {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Close the child's standard input, at which it ends, and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(model: str, device: str, threads: int, batch_size: int, dtype: str) -> None:
    """Run the child's side: answer each line of standard input until it is closed."""
    # Output of libraries must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch
    import transformers
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(threads)
    lm = HFLM(pretrained=model, dtype=dtype, device="cuda" if device == "gpu" else "cpu", batch_size=batch_size)

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    answer(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads")
    for line in sys.stdin:
        kind, arguments = json.loads(line)
        instances = [Instance(kind, {}, tuple(one), i) for i, one in enumerate(arguments)]
        began = time.perf_counter()
        found = getattr(lm, kind)(instances, disable_tqdm=True)
        seconds = time.perf_counter() - began
        answer([seconds, [one[0] if kind == "loglikelihood" else one for one in found]])


def main() -> None:
    """Run as the child process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--dtype", required=True)
    options = parser.parse_args()
    serve(options.model, options.device, options.threads, options.batch_size, options.dtype)


if __name__ == "__main__":
    main()

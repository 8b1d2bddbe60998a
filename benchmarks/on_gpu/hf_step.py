"""The step hf: the whole path of an lm_eval run beside ``--model hf``, both in bfloat16."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.scale import Scale

_DEMO = Path(__file__).parents[2] / "birdie_zmq" / "models" / "demo"
_DIFFERENCE = 0.1
"""Nats; the median difference of scores of one token in bfloat16 is below it unless one of both is wrong."""


def hf(scale: Scale) -> str:
    """Score questions with five examples by hf and by birdie_zmq, each after requests of the same form that do not count."""
    import jax

    from benchmarks.torch_peer import TorchPeer
    from harness_model import BirdieZMQ

    device = "cpu" if jax.default_backend() == "cpu" else "gpu"
    # Both are loaded at once. By default JAX would reserve most of the memory.
    os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.45"
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="birdie-") as name:
        _write_checkpoint(Path(name), scale.hf_config, "cuda" if device == "gpu" else "cpu")
        warm, timed = (_questions(scale.hf_questions, seed) for seed in (1, 2))
        with TorchPeer(name, device, os.cpu_count() or 1, scale.hf_batch_size, "bfloat16") as peer:
            peer.answer("loglikelihood", warm[: 4 * scale.hf_batch_size])
            theirs = peer.answer("loglikelihood", timed)
        with BirdieZMQ(model_tag=name, dtype="bfloat16") as lm:
            _loglikelihoods(lm, warm)
            began = time.perf_counter()
            ours = _loglikelihoods(lm, timed)
            seconds = time.perf_counter() - began
    differences = [abs(a - b) for a, b in zip(theirs.answers, ours, strict=True)]
    if not statistics.median(differences) <= _DIFFERENCE:
        raise SystemExit(f"scores differ from those of hf: median {statistics.median(differences):.2g} nats")
    return (
        f"{len(timed):,} requests: hf {theirs.seconds:.2f} s (batch size {scale.hf_batch_size}), birdie_zmq {seconds:.2f} s, "
        f"{theirs.seconds / seconds:.1f} times; scores differ by {statistics.median(differences):.1g} nats (median), "
        f"{max(differences):.1g} at most; {peer.versions}"
    )


def _questions(count: int, seed: int) -> list[tuple[str, str]]:
    """Return contexts with continuations."""
    from birdie_zmq.tools.bench.workloads import Sizes, make_requests

    return list(make_requests("fewshot", count, seed, Sizes()).pairs)


def _loglikelihoods(lm: Any, pairs: list[tuple[str, str]]) -> list[float]:
    from lm_eval.api.instance import Instance

    instances = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    return [score for score, _ in lm.loglikelihood(instances, disable_tqdm=True)]


def _write_checkpoint(folder: Path, config: dict[str, Any], device: str) -> None:
    """Write a Llama with random weights in bfloat16 and the demo's tokenizer, in another process: torch keeps memory."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(_DEMO / name, folder)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(tokenizer | {"model_max_length": config["max_position_embeddings"]})
    )
    program = (
        "import json, sys, torch, transformers; torch.set_default_dtype(torch.bfloat16); torch.set_default_device(sys.argv[3]);"
        "config = transformers.LlamaConfig(**json.loads(sys.argv[2]), bos_token_id=1, eos_token_id=2, pad_token_id=0);"
        "transformers.LlamaForCausalLM(config).save_pretrained(sys.argv[1])"
    )
    command = [sys.executable, "-c", program, str(folder), json.dumps(config), device]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

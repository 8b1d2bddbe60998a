"""The commands of the docs as a test types them: the few words that are replaced, and the few commands that are left out.

All that differs from the pages is in the tables of this file. A line of a table that no page needs any more fails.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from tests.docs.markdown import Block


@dataclass(frozen=True)
class Substitution:
    """What is replaced in commands; ``{names}`` in the replacement are places of the test."""

    pattern: str
    replacement: str
    reason: str


SUBSTITUTIONS = (
    Substitution(r"\b5555\b", "{port}", "the port may be in use; the checkout's own default is replaced alike"),
    Substitution(r"\b5556\b", "{status_port}", "the same"),
    Substitution(r"\b12355\b", "{coordinator_port}", "the same"),
    Substitution(r"(?<=:|\s)8000\b", "{serve_port}", "the same"),
    Substitution(r"/checkpoints\b", "{checkpoints}", "a folder of copies of the demo's checkpoint"),
    Substitution(r"\bpretrained=MODEL\b", "pretrained={checkpoints}/SmolLM2-135M", "a word that stands for a path"),
    Substitution(r"--tasks arc_easy\b", "--include_path examples/tasks --tasks demo_choice", "the hub is out of reach"),
    Substitution(r"--model hf\b", "--model birdie_zmq", "hf needs PyTorch; both runs are then ours"),
    Substitution(r"\bbroker-host\b", "127.0.0.1", "a word that stands for a machine"),
    Substitution(
        r"(--key-file |key_file=)(?=worker-|client-)", r"\1{keys}/", "nobody copies the files to where they are used"
    ),
    Substitution(
        r"^birdie-zmq status$", "birdie-zmq status --once", "it goes on until Ctrl-C, and draws on terminals only"
    ),
    Substitution(r"/tmp/linen\b", "{folder}/linen", "nothing is left behind"),
)

NOT_RUN = {
    "pip install tox && tox": "it runs all tests, of which this is one",
    "pip install '.[torch]'": "PyTorch takes minutes to install; tox -e torch does it",
    "lm_eval --model birdie_zmq --model_args pretrained=/checkpoints/SmolLM2-135M,engine=torch,dtype=float32 --tasks arc_easy": (
        "needs PyTorch; tests/torch runs such a checkpoint"
    ),
    "lm_eval --model birdie_zmq --model_args pretrained=/checkpoints/Any-Causal-Model,engine=torch --tasks arc_easy": (
        "needs PyTorch; tests/torch runs such a checkpoint"
    ),
    "python -m benchmarks.scoring --model DIR --tasks mmlu_real:5 arc_easy_real mmlu_real boolq_real lambada_real": (
        "a measurement of many minutes, with PyTorch and data of the hub"
    ),
    "python -m benchmarks.scoring --model DIR --tasks wikitext_real --hf-batch-size 1": "the same",
    "python -m benchmarks.generation --model DIR": "the same",
    "python -m benchmarks.scoring --model DIR --path": "the same",
    "python -m benchmarks.agreement --model DIR": "the same",
    "python -m benchmarks.scaling --model DIR --model-args dtype=float32": "the same",
    "python -m benchmarks.scaling --model DIR --model-args dtype=float32 --documents 150 --kill-and-join": "the same",
    "python -m benchmarks.long_texts --plot docs/images/long_texts.png": "a measurement of many minutes, up to 65,536 tokens",
}
"""Commands that are not run, without their comments, and why."""

PREPARED = {
    "README.md": (
        "birdie-zmq demo --tasks demo_choice --log_samples --output_path RESULTS_A",
        "cp -r RESULTS_A RESULTS_B",
    ),
    "docs/how_to/follow_a_run.md": (
        "mkdir -p RUN/checkpoints",
        "cp -r /checkpoints/SmolLM2-135M RUN/checkpoints/step_100",
        "cp -r /checkpoints/SmolLM2-135M RUN/checkpoints/step_200",
        "python -m tests.models.native.demo_as_maxtext MAXTEXT/checkpoints/100 MAXTEXT/checkpoints/200",
    ),
    "docs/how_to/checkpoints.md": ("python -m tests.models.native.demo_as_maxtext RUN/checkpoints/1000",),
    "docs/how_to/doctor.md": (
        "cp api.py my_model.py",
        "cp -r /checkpoints/SmolLM2-135M mine",
        "python broker.py",
        "python -m workers.jax_worker",
    ),
}
"""What a page takes as there already: two results to compare; the checkpoints of runs; a model file, a model and a broker with a worker."""

GOES_ON = (
    (re.compile(r"(python broker\.py|birdie-zmq broker)\b"), re.compile(r"broker at")),
    (
        re.compile(r"(python -m workers\.\w+|birdie-zmq worker)\b"),
        re.compile(r"registered with the broker|follower worker"),
    ),
    (re.compile(r"birdie-zmq serve\b"), re.compile(r"loaded .* in")),
)
"""Commands that a reader leaves running in a terminal of their own, and the output by which they are ready."""


def commands(block: Block) -> list[str]:
    """The commands of a block, each as it stands there; one ends at the line with which the shell calls it complete."""
    found: list[str] = []
    lines: list[str] = []
    for line in block.text.splitlines():
        lines.append(line)
        text = "\n".join(lines)
        if (
            text.endswith("\\")
            or subprocess.run(["bash", "-n", "-c", text], capture_output=True, check=False).returncode
        ):
            continue
        if without_comment(text):
            found.append(text)
        lines = []
    assert not lines, f"{block.where} ends within a command: {lines}"
    return found


def without_comment(command: str) -> str:
    """The command alone."""
    return re.sub(r"(^|\s+)#[^'\"]*$", "", command).strip()


def substituted(command: str, places: dict[str, str]) -> str:
    """A command, or a file that a reader saves, with all that is replaced in it."""
    for each in SUBSTITUTIONS:
        command = re.sub(each.pattern, each.replacement.format(**places), command)
    return command


def ready_mark(command: str) -> re.Pattern[str] | None:
    """What a command writes once it is ready, if it is one that goes on; None for one that ends."""
    return next((mark for kind, mark in GOES_ON if kind.match(command)), None)


def starts_broker(command: str) -> bool:
    """Whether it is a broker: a reader has one port, and so ends the one before."""
    return GOES_ON[0][0].match(command) is not None

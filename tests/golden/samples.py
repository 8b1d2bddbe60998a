"""Compare what a run answered, sample by sample, with what was answered before: ``python -m tests.golden.samples FOLDER``.

``samples.json`` holds the responses of SmolLM2-135M-Instruct on rows of public benchmarks: log-likelihoods, greedy flags
and texts, without the rows themselves. FOLDER holds one folder for each of its runs, written by ``lm_eval --log_samples
--output_path FOLDER/RUN``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).with_name("samples.json")
TOLERANCE = 1e-4
"""Nats by which a log-likelihood may differ, and this share of it for whole texts."""


def responses(folder: Path) -> dict[str, list[Any]]:
    """Read the responses of each task in a run's folder, in the order of the documents."""
    found = {}
    for path in sorted(folder.rglob("samples_*.jsonl")):
        samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        task = path.stem.removeprefix("samples_").rpartition("_")[0]
        found[task] = [sample["resps"] for sample in sorted(samples, key=lambda sample: int(sample["doc_id"]))]
    return found


def leaves(value: Any) -> Iterator[str]:
    """Yield the numbers, flags and texts of nested lists as lm_eval writes them."""
    if isinstance(value, list):
        for each in value:
            yield from leaves(each)
    else:
        yield str(value)


def difference(one: str, other: str) -> float:
    """Return by how much two responses differ: in nats over the tolerance's scale, infinite for other texts or flags."""
    if one == other:
        return 0.0
    try:
        a, b = float(one), float(other)
    except ValueError:
        return float("inf")
    return abs(a - b) / max(1.0, abs(a) / 100)


def main(folder: Path) -> int:
    """Print a line for each run and return 1 where one differs or is missing."""
    failed = False
    for run, tasks in json.loads(GOLDEN.read_text(encoding="utf-8")).items():
        found = responses(folder / run)
        pairs = [
            (list(leaves(expected)), list(leaves(found.get(task, [])))) for task, expected in sorted(tasks.items())
        ]
        if any(len(expected) != len(answered) for expected, answered in pairs):
            print(f"{run}: samples are missing")
            failed = True
            continue
        worst = max(difference(a, b) for expected, answered in pairs for a, b in zip(expected, answered, strict=True))
        print(f"{run}: {sum(len(expected) for expected, _ in pairs)} values, largest difference {worst:.2e}")
        failed |= not worst <= TOLERANCE
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))

"""Load the documents of the tasks in this folder from JSON Lines files, without network access."""

import json
from pathlib import Path
from typing import Any

import datasets

DATA = Path(__file__).resolve().parent / "data"


def load(data: dict[str, str], **_metadata: Any) -> datasets.DatasetDict:
    """Return the dataset of a task; lm_eval calls this with its `dataset_kwargs` and `metadata`.

    Args:
        data: The name of a file in ``data/`` for each split.
    """
    return datasets.DatasetDict({split: _read(DATA / name) for split, name in data.items()})


def _read(path: Path) -> datasets.Dataset:
    with path.open(encoding="utf-8") as lines:
        return datasets.Dataset.from_list([json.loads(line) for line in lines])

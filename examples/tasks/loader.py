"""Loads the documents of the tasks in this folder from the JSON Lines files beside it, without any network."""

import json
from pathlib import Path
from typing import Any

import datasets

DATA = Path(__file__).resolve().parent / "data"


def load(data: dict[str, str], **_metadata: Any) -> datasets.DatasetDict:
    """Return the dataset of a task; lm_eval calls this with its `dataset_kwargs` and `metadata`.

    Args:
        data: the name of a file in ``data/`` for each split.
    """
    return datasets.DatasetDict({split: _read(DATA / name) for split, name in data.items()})


def _read(path: Path) -> datasets.Dataset:
    with path.open(encoding="utf-8") as lines:
        return datasets.Dataset.from_list([json.loads(line) for line in lines])

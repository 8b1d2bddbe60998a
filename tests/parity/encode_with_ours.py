"""Encode and decode texts with birdie-zmq's tokenizers in a process of its own, which must not import torch.

Usage: python encode_with_ours.py QUESTIONS ANSWERS. Both are JSON files: a list of questions with the keys ``directory``,
``add_bos_token`` and ``texts``; and a list of answers with the keys ``ids``, ``whole`` and ``skipped``: the ids of each
text, and the texts of these ids with and without special tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.models import load_tokenizer


def answer(question: dict[str, Any]) -> dict[str, Any]:
    add_bos = question["add_bos_token"]
    keywords = {} if add_bos is None else {"add_bos_token": add_bos}
    adapter = TokenizerAdapter(load_tokenizer(question["directory"], **keywords), add_bos)
    ids = adapter.encode(question["texts"])
    return {
        "ids": ids,
        "whole": [adapter.decode(row, skip_special=False) for row in ids],
        "skipped": [adapter.decode(row) for row in ids],
        "prefix": adapter.prefix_token_id,
        "eos": adapter.eos_token_id,
    }


if __name__ == "__main__":
    questions = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers = [answer(question) for question in questions]
    assert "torch" not in sys.modules
    Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")

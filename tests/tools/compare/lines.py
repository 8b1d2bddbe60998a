"""Lines of samples files as lm_eval 0.4.13 writes them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

TIME = "2026-01-02T03-04-05.678901"


def line(doc_id: int, arguments: list[list[Any]], responses: list[list[Any]], **more: Any) -> dict[str, Any]:
    return {
        "doc_id": doc_id,
        "doc": {"question": f"document {doc_id}"},
        "target": "0",
        "arguments": {
            f"gen_args_{i}": {f"arg_{j}": value for j, value in enumerate(request)}
            for i, request in enumerate(arguments)
        },
        "resps": responses,
        "filter": "none",
        "metrics": [],
        "doc_hash": hashlib.sha256(str(doc_id).encode()).hexdigest(),
        **more,
    }


def choice(doc_id: int, scores: list[Any], greedy: list[bool] | None = None, **more: Any) -> dict[str, Any]:
    flags = greedy or [False] * len(scores)
    requests: list[list[Any]] = [[f"question {doc_id}", f" answer {i}"] for i in range(len(scores))]
    responses: list[list[Any]] = [
        [[None if score is None else str(score), str(flag)]] for score, flag in zip(scores, flags, strict=True)
    ]
    return line(doc_id, requests, responses, **more)


def rolling(doc_id: int, score: float, **more: Any) -> dict[str, Any]:
    return line(doc_id, [[f"text {doc_id}"]], [[str(score)]], **more)


def generated(doc_id: int, *texts: str, **more: Any) -> dict[str, Any]:
    return line(doc_id, [[f"prompt {doc_id}", {"until": ["\n"], "max_gen_toks": 8}]], [list(texts)], **more)


def write(folder: Path, task: str, lines: list[dict[str, Any]], time: str = TIME, **metrics: float) -> Path:
    """Write the folder of a run with one task; further calls add tasks or newer results."""
    inner = folder / "some__model"
    inner.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(one) + "\n" for one in lines)
    (inner / f"samples_{task}_{time}.jsonl").write_text(text)
    path = inner / f"results_{time}.json"
    results = json.loads(path.read_text()) if path.exists() else {"results": {}}
    results["results"][task] = {"alias": task, **{f"{name},none": value for name, value in metrics.items()}}
    path.write_text(json.dumps(results))
    return folder

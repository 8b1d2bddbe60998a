"""A task on local data by inspect-ai, in an environment that has it; prints its results as JSON.

``python ask_inspect.py URL KEY FOLDER``: the folder has data.jsonl with questions and answers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import inspect_ai
from inspect_ai import Task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import exact
from inspect_ai.solver import generate

MAX_TOKENS = 12


def main(url: str, key: str, folder: Path) -> None:
    """Run the task, and print the accuracy and the answers."""
    lines = [json.loads(line) for line in (folder / "data" / "data.jsonl").read_text().splitlines()]
    task = Task(
        dataset=[Sample(input=line["question"], target=line["answer"]) for line in lines],
        solver=generate(),
        scorer=exact(),
    )
    config = GenerateConfig(temperature=0, max_tokens=MAX_TOKENS, logprobs=True, top_logprobs=2)
    model = get_model("openai-api/local/demo", config=config, base_url=url, api_key=key)
    (log,) = inspect_ai.eval(task, model=model, log_dir=str(folder / "logs"), display="none")
    assert log.status == "success", log.error
    assert log.samples is not None
    choices = {str(sample.input): sample.output.choices[0] for sample in log.samples}
    scores = log.results.scores if log.results is not None else []
    print(
        json.dumps(
            {
                "exact_match": scores[0].metrics["mean"].value,
                "answers": {question: choice.message.text for question, choice in choices.items()},
                "likeliest": [
                    len(token.top_logprobs or [])
                    for choice in choices.values()
                    for token in (choice.logprobs.content if choice.logprobs is not None else [])
                ],
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))

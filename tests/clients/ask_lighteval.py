"""A task on local data by lighteval's LiteLLM client, in an environment that has lighteval; prints its results as JSON.

``python ask_lighteval.py URL KEY FOLDER``: the folder has data.jsonl with questions and answers.
"""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

# LiteLLM asks GitHub for a list of prices when it is imported; it brings a copy.
os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

from lighteval.logging.evaluation_tracker import EvaluationTracker
from lighteval.metrics.metrics import Metrics
from lighteval.models.endpoints.litellm_model import LiteLLMModelConfig
from lighteval.models.model_input import GenerationParameters
from lighteval.pipeline import ParallelismManager, Pipeline, PipelineParameters
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.registry import Registry
from lighteval.tasks.requests import Doc

MAX_TOKENS = 12

# Some of lighteval's own tasks ask GitHub and the hub for files while they are imported, and it imports all of them.
Registry._load_from_files = staticmethod(lambda files, prefix: {})
Registry._load_from_subdirs = staticmethod(lambda folders: {})


def document(line: dict[str, Any], task_name: str) -> Doc:
    """Return a question, whose only choice is the right answer."""
    return Doc(task_name=task_name, query=line["question"], choices=[line["answer"]], gold_index=0)


def main(url: str, key: str, folder: Path) -> None:
    """Run the task, and print the metrics and the answers."""
    tasks = types.ModuleType("local_tasks")
    tasks.TASKS_TABLE = [  # type: ignore[attr-defined]
        LightevalTaskConfig(
            name="questions",
            prompt_function=document,
            hf_repo=str(folder / "data"),
            hf_subset="default",
            hf_avail_splits=["train"],
            evaluation_splits=["train"],
            generation_size=MAX_TOKENS,
            stop_sequence=[],
            metrics=[Metrics.exact_match],
        )
    ]
    pipeline = Pipeline(
        tasks="questions|0",
        pipeline_parameters=PipelineParameters(launcher_type=ParallelismManager.NONE, custom_tasks_directory=tasks),
        evaluation_tracker=EvaluationTracker(output_dir=str(folder / "results")),
        model_config=LiteLLMModelConfig(
            model_name="openai/demo",
            provider="openai",
            base_url=url,
            api_key=key,
            cache_dir=str(folder / "cache"),
            generation_parameters=GenerationParameters(temperature=0),
        ),
    )
    pipeline.evaluate()
    (details,) = pipeline.evaluation_tracker.details_logger.details.values()
    answers = {each.doc.query: each.model_response.text[0] for each in details}
    (metrics,) = (values for name, values in pipeline.get_results()["results"].items() if name != "all")
    (accuracy,) = (value for name, value in metrics.items() if not name.endswith("_stderr"))
    print(json.dumps({"exact_match": accuracy, "answers": answers}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))

"""All requests of an evaluation are found at its first call, by walking up to lm_eval's evaluate."""

from __future__ import annotations

import types
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance

from birdie_zmq.harness.preflight import requests_of_run
from tests.instances import instance

Finder = Callable[[Sequence[Instance]], Mapping[str, Sequence[Instance]]]


def numbered(kind: Any, index: int) -> Instance:
    return instance(kind, ("a", {}), index, task="task", doc_id=index)


def evaluate(find: Finder, requests: object, called_with: list[Instance], module: str = "lm_eval.evaluator") -> Any:
    """Call a function from a frame of a module that has a local variable ``requests``."""
    code = compile("def evaluate(find, requests, called_with): return find(called_with)", "evaluator.py", "exec")
    namespace = types.ModuleType(module).__dict__
    exec(code, namespace)
    return namespace["evaluate"](find, requests, called_with)


SCORES = [numbered("loglikelihood", n) for n in range(3)]
PROMPTS = [numbered("generate_until", n) for n in range(2)]


def test_the_requests_of_a_run_are_found_at_any_depth() -> None:
    requests = defaultdict(list, {"loglikelihood": SCORES, "generate_until": PROMPTS})

    def find(called_with: Sequence[Instance]) -> Mapping[str, Sequence[Instance]]:
        return (lambda: requests_of_run(called_with))()

    assert evaluate(find, requests, SCORES[1:]) == {"loglikelihood": SCORES, "generate_until": PROMPTS}


def test_nothing_is_found_elsewhere() -> None:
    requests = {"loglikelihood": SCORES, "generate_until": PROMPTS}

    assert requests_of_run(SCORES) == {}
    assert requests_of_run([]) == {}
    assert evaluate(requests_of_run, requests, SCORES, "another.module") == {}
    assert evaluate(requests_of_run, requests, [numbered("loglikelihood", 0)]) == {}
    assert evaluate(requests_of_run, {"loglikelihood": ["text"]}, SCORES) == {}
    assert evaluate(requests_of_run, SCORES, SCORES) == {}
    assert evaluate(requests_of_run, None, SCORES) == {}

"""The documents of the demo tasks, which are held out from training.

Questions about facts use the phrasings that `demo_world` holds out. All other questions are sampled here, and `Writer`
excludes them from the training text.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from examples.demo_model.demo_text import Example, counting, deduction, story
from examples.demo_model.demo_world import COLOURS, Fact, World

HELD_OUT_SUM = "How much is {a} plus {b}?"
CHOICES = 4

Document = dict[str, Any]


@dataclass(frozen=True)
class TaskData:
    """Documents by file name (without .jsonl), and all of their questions."""

    files: dict[str, list[Document]]
    questions: frozenset[str]


def sample_tasks(world: World, seed: int) -> TaskData:
    """Sample the documents of all tasks and of their few-shot splits; no question occurs in two of them."""
    rng = random.Random(seed)
    facts = iter(rng.sample(list(world.values()), len(world)))

    def sample_facts(count: int) -> list[tuple[Example, tuple[str, ...]]]:
        """Sample `count` facts, each used once in all tasks, with the possible values of the answer."""
        return [
            (_held_out_example(fact, rng), fact.relation.values) for fact, _ in zip(facts, range(count), strict=False)
        ]

    def sample_deductions(count: int) -> list[tuple[Example, tuple[str, ...]]]:
        return [(deduction(rng), COLOURS) for _ in range(count)]

    choice = [_choice_document(*sample, rng) for sample in sample_facts(84) + sample_deductions(16)]
    choice_fewshot = [_choice_document(*sample, rng) for sample in sample_facts(12) + sample_deductions(4)]
    sums, counts = _distinct(_held_out_sum, 8, rng), _distinct(counting, 6, rng)
    generate = [example for example, _ in sample_facts(24) + sample_deductions(6)] + sums[:6] + counts[:4]
    generate_fewshot = [example for example, _ in sample_facts(6) + sample_deductions(2)] + sums[6:] + counts[4:]
    lengths = [1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 6, 6, 20, 24, 28, 32, 40, 48]
    files = {
        "demo_choice": choice,
        "demo_choice_fewshot": choice_fewshot,
        "demo_generate": [_generate_document(example) for example in generate],
        "demo_generate_fewshot": [_generate_document(example) for example in generate_fewshot],
        "demo_rolling": [{"text": story(world, rng, paragraphs)} for paragraphs in lengths],
    }
    questions = frozenset(d["question"] for documents in files.values() for d in documents if "question" in d)
    return TaskData(files, questions)


def _held_out_example(fact: Fact, rng: random.Random) -> Example:
    question = rng.choice(fact.relation.held_out_questions).format(a=fact.subject)
    return Example(question, fact.value, fact.state(rng))


def _held_out_sum(rng: random.Random) -> Example:
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    return Example(HELD_OUT_SUM.format(a=a, b=b), str(a + b), f"{a} + {b} = {a + b}.")


def _distinct(sample: Callable[[random.Random], Example], count: int, rng: random.Random) -> list[Example]:
    found: dict[str, Example] = {}
    while len(found) < count:
        example = sample(rng)
        found[example.question] = example
    return list(found.values())


def _choice_document(example: Example, values: tuple[str, ...], rng: random.Random) -> Document:
    wrong = rng.sample([value for value in values if value != example.answer], CHOICES - 1)
    choices = [*wrong, example.answer]
    rng.shuffle(choices)
    return {"question": example.question, "choices": choices, "label": choices.index(example.answer)}


def _generate_document(example: Example) -> Document:
    return {"question": example.question, "answer": example.answer}

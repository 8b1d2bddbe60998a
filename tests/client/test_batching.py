"""Every item is in one job, jobs stay within the limits of a message, and related items are in the same job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise, repeat
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.client.batching import Prompt, assign_random_keys, generate_jobs, loglikelihood_jobs, rolling_jobs
from birdie_zmq.client.job import Job
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import GenerateWork, GenerationParams, LogLikelihoodWork, RollingWork, SamplingParams

SETTINGS = ClientSettings(batch_items=4, batch_characters=20)

text = st.text("ab", max_size=30)
pairs = st.lists(st.tuples(st.text("ab", max_size=3), text), max_size=30)
texts = st.lists(text, max_size=30)
params = st.builds(
    GenerationParams,
    until=st.sampled_from([(), ("a",), ("a", "b")]),
    max_gen_toks=st.sampled_from([1, 256]),
    sampling=st.sampled_from([None, SamplingParams(), SamplingParams(top_p=0.5)]),
)
prompts = st.lists(st.tuples(text, params), max_size=30).map(lambda requests: assign_random_keys(requests, seed=0))


def items_of(jobs: Iterable[Job]) -> list[int]:
    return [item for job in jobs for item in job.items]


def content_of(jobs: Iterable[Job]) -> dict[int, Any]:
    """Return the request of each item, by its number."""
    content: dict[int, Any] = {}
    for job in jobs:
        match job.work:
            case LogLikelihoodWork(pairs=pairs):
                requests: Sequence[Any] = pairs
            case RollingWork(texts=texts):
                requests = texts
            case GenerateWork(prompts=prompts, settings=settings, keys=keys):
                requests = [Prompt(*each) for each in zip(prompts, repeat(settings), keys or repeat(None))]
            case other:
                raise AssertionError(f"unexpected work: {type(other).__name__}")
        content.update(zip(job.items, requests, strict=True))
    return content


def characters_of(job: Job) -> int:
    match job.work:
        case LogLikelihoodWork(pairs=pairs):
            return sum(len(context) + len(continuation) for context, continuation in pairs)
        case RollingWork(texts=texts):
            return sum(map(len, texts))
        case GenerateWork(prompts=prompts):
            return sum(map(len, prompts))
        case other:
            raise AssertionError(f"unexpected work: {type(other).__name__}")


def assert_within_bounds(jobs: Iterable[Job]) -> None:
    for job in jobs:
        assert 1 <= len(job.items) <= SETTINGS.batch_items
        assert characters_of(job) <= SETTINGS.batch_characters or len(job.items) == 1
        assert job.characters == characters_of(job)


def assert_descending(lengths: Iterable[int]) -> None:
    assert all(longer >= shorter for longer, shorter in pairwise(lengths))


@given(pairs)
def test_every_pair_is_in_one_job(pairs: list[tuple[str, str]]) -> None:
    jobs = list(loglikelihood_jobs(pairs, SETTINGS))

    assert sorted(items_of(jobs)) == list(range(len(pairs)))
    assert content_of(jobs) == dict(enumerate(pairs))


@given(texts)
def test_every_text_is_in_one_job(texts: list[str]) -> None:
    jobs = list(rolling_jobs(texts, SETTINGS))

    assert sorted(items_of(jobs)) == list(range(len(texts)))
    assert content_of(jobs) == dict(enumerate(texts))


@given(prompts)
def test_every_prompt_is_in_one_job_with_its_settings(prompts: list[Prompt]) -> None:
    jobs = list(generate_jobs(prompts, SETTINGS))

    assert sorted(items_of(jobs)) == list(range(len(prompts)))
    assert content_of(jobs) == dict(enumerate(prompts))


@given(pairs, texts, prompts)
def test_jobs_stay_within_items_and_characters(
    pairs: list[tuple[str, str]], texts: list[str], prompts: list[Prompt]
) -> None:
    assert_within_bounds(loglikelihood_jobs(pairs, SETTINGS))
    assert_within_bounds(rolling_jobs(texts, SETTINGS))
    assert_within_bounds(generate_jobs(prompts, SETTINGS))


@given(pairs)
def test_equal_contexts_are_neighbours(pairs: list[tuple[str, str]]) -> None:
    contexts = [pairs[item][0] for item in items_of(loglikelihood_jobs(pairs, SETTINGS))]

    assert len(list(groupby(contexts))) == len(set(contexts))


@given(pairs)
def test_the_longest_context_comes_first_and_its_longest_continuation(pairs: list[tuple[str, str]]) -> None:
    ordered = [pairs[item] for item in items_of(loglikelihood_jobs(pairs, SETTINGS))]

    assert_descending(len(context) for context, _ in ordered)
    for _, same_context in groupby(ordered, key=lambda pair: pair[0]):
        assert_descending(len(continuation) for _, continuation in same_context)


SHOTS = {"p": "Example. " * 100, "q": "Instance. " * 100, "r": ""}


@given(st.lists(st.tuples(st.sampled_from("pqr"), st.text("ab", max_size=9)), max_size=60))
def test_texts_with_a_long_common_prefix_are_grouped_and_name_it(
    requests: list[tuple[str, str]],
) -> None:
    settings = ClientSettings(batch_items=8)
    jobs = list(loglikelihood_jobs([(SHOTS[task] + question, " yes") for task, question in requests], settings))

    assert sorted(items_of(jobs)) == list(range(len(requests)))
    prefixes: dict[str | None, set[str]] = {}
    for job in jobs:
        prefixes.setdefault(job.prefix, set()).update(requests[item][0] for item in job.items)
    for prefix, shots in prefixes.items():
        assert prefix is None or (len(shots) == 1 and shots <= {"p", "q"})
    counts = Counter(task for task, _ in requests)
    for task in "pq":
        with_prefix = sum(len(job.items) for job in jobs if job.prefix and requests[job.items[0]][0] == task)
        assert with_prefix == (counts[task] if counts[task] >= 2 else 0)
    for ungrouped in (job for job in jobs if not job.prefix):
        assert_descending(len(SHOTS[requests[item][0]]) + len(requests[item][1]) for item in ungrouped.items)


@given(texts)
def test_the_longest_text_comes_first(texts: list[str]) -> None:
    assert_descending(len(texts[item]) for item in items_of(rolling_jobs(texts, SETTINGS)))


@given(prompts)
def test_prompts_are_grouped_by_settings_and_sorted_by_text(prompts: list[Prompt]) -> None:
    ordered = [prompts[item] for item in items_of(generate_jobs(prompts, SETTINGS))]
    groups = [(settings, list(group)) for settings, group in groupby(ordered, key=lambda prompt: prompt.settings)]

    assert len(groups) == len({settings for settings, _ in groups})
    for _, group in groups:
        assert [prompt.text for prompt in group] == sorted(prompt.text for prompt in group)


GREEDY, SAMPLED = GenerationParams(), GenerationParams(sampling=SamplingParams())


def test_only_sampled_prompts_have_a_key() -> None:
    greedy, sampled = assign_random_keys([("a", GREEDY), ("a", SAMPLED)], seed=0)

    assert greedy.key is None
    assert sampled.key is not None


def test_repeated_prompts_have_distinct_keys_wherever_they_are() -> None:
    requests = [("a", SAMPLED), ("b", SAMPLED), ("a", SAMPLED)]
    keys = [prompt.key for prompt in assign_random_keys(requests, seed=0)]
    others = [prompt.key for prompt in assign_random_keys([("c", SAMPLED), *reversed(requests)], seed=0)]

    assert len(set(keys)) == 3
    assert others[1:] == [keys[0], keys[1], keys[2]]


def test_keys_depend_on_seed_and_settings() -> None:
    again = GenerationParams(sampling=SamplingParams(temperature=0.5))
    keys = [assign_random_keys([("a", settings)], seed)[0].key for settings in (SAMPLED, again) for seed in (0, 1)]

    assert len(set(keys)) == 4


def test_a_job_is_as_full_as_its_bounds_allow() -> None:
    by_items = rolling_jobs(["a"] * 9, SETTINGS)
    by_characters = rolling_jobs(["a" * 10] * 5, SETTINGS)

    assert [len(job.items) for job in by_items] == [4, 4, 1]
    assert [len(job.items) for job in by_characters] == [2, 2, 1]


def test_a_text_above_the_limit_is_a_job_by_itself() -> None:
    jobs = rolling_jobs(["a", "b" * 30, "c"], SETTINGS)

    assert [job.items for job in jobs] == [[1], [0, 2]]


def test_no_items_are_no_jobs() -> None:
    assert list(loglikelihood_jobs([], SETTINGS)) == []
    assert list(rolling_jobs([], SETTINGS)) == []
    assert list(generate_jobs([], SETTINGS)) == []

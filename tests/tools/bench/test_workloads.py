"""The requests of the workloads: their forms, their dependence on the seed, and that they fit the model."""

from __future__ import annotations

import pytest

from birdie_zmq.client.job import Job
from birdie_zmq.settings import ClientSettings
from birdie_zmq.tools.bench.texts import TextGenerator
from birdie_zmq.tools.bench.workloads import WORKLOADS, Sizes, Workload, fit_sizes, make_jobs, make_requests
from birdie_zmq.types import GenerateWork, LogLikelihoodWork, RollingWork, Work

SIZES = Sizes(shots=2, max_gen_toks=7, long_words=900)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_requests_depend_on_the_seed_only(workload: Workload) -> None:
    first, again, other = (make_requests(workload, 5, seed, SIZES) for seed in (3, 3, 4))

    assert first == again
    assert first.documents == other.documents == 5
    assert not {*first.pairs, *first.texts} & {*other.pairs, *other.texts}


def test_choice_has_one_request_for_each_of_four_answers() -> None:
    requests = make_requests("choice", 3, 1, SIZES)

    assert requests.requests == 12
    for number in range(3):
        four = requests.pairs[4 * number : 4 * number + 4]
        assert len({context for context, _ in four}) == 1
        assert all(answer.startswith(" ") for _, answer in four)


def test_fewshot_examples_precede_every_question() -> None:
    contexts = [context for context, _ in make_requests("fewshot", 6, 1, SIZES).pairs]
    examples, _, _ = contexts[0].rpartition("\n\n")

    assert examples.count("Answer: ") == 2
    assert all(context.startswith(examples) for context in contexts)
    assert contexts[0].count("Answer:") == 3
    assert len(set(contexts)) == 6


def test_fewshot_examples_have_equal_length_for_every_seed() -> None:
    lengths = [len(make_requests("fewshot", 1, seed, SIZES).pairs[0][0].rpartition("\n\n")[0]) for seed in range(40)]

    assert max(lengths) - min(lengths) < 20


def test_rolling_texts_vary_in_length_and_long_ones_do_not() -> None:
    words = [text.count(" ") + 1 for text in make_requests("rolling", 200, 1, SIZES).texts]
    (long,) = make_requests("long", 1, 1, SIZES).texts

    assert min(words) < 60 < 300 < max(words)
    assert 900 <= long.count(" ") + 1 < 930


def test_generation_uses_max_gen_toks_of_the_sizes() -> None:
    requests = make_requests("generation", 3, 1, SIZES)
    (job,) = make_jobs("generation", requests, SIZES, ClientSettings())

    assert isinstance(job.work, GenerateWork)
    assert job.work.settings.max_gen_toks == 7
    assert sorted(job.items) == [0, 1, 2]


@pytest.mark.parametrize(("workload", "work"), [("choice", LogLikelihoodWork), ("rolling", RollingWork)])
def test_scoring_jobs_match_those_of_lm_eval(workload: Workload, work: type[Work]) -> None:
    jobs: list[Job] = list(
        make_jobs(workload, make_requests(workload, 9, 1, SIZES), SIZES, ClientSettings(batch_items=4))
    )

    assert all(isinstance(job.work, work) for job in jobs)
    assert len(jobs) == (9 if workload == "choice" else 3)


@pytest.mark.parametrize(("max_length", "shots"), [(2_048, 5), (256, 2), (150, 1), (96, 0)])
def test_number_of_shots_fits_the_model_length(max_length: int, shots: int) -> None:
    sizes = fit_sizes(max_length, 0.25)

    assert sizes.shots == shots
    longest = max(len(context + answer) for context, answer in make_requests("fewshot", 300, 1, sizes).pairs)
    assert not shots or longest / 4 <= max_length


def test_long_text_fills_the_model_length() -> None:
    sizes = fit_sizes(4_096, 0.25)
    (text,) = make_requests("long", 1, 1, sizes).texts

    assert 0.9 * 4_096 < len(text) / 4 <= 4_096
    assert fit_sizes(64, 1.0).max_gen_toks == 16


def test_sampled_lengths_are_within_bounds() -> None:
    lengths = [TextGenerator(1).length(10, 90), *(TextGenerator(seed).length(10, 90) for seed in range(300))]

    assert min(lengths) >= 10
    assert max(lengths) <= 90
    assert sum(length < 30 for length in lengths) == pytest.approx(150, abs=40)

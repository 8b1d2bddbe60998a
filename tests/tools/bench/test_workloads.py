"""What is asked: the forms, that it is drawn alike for a seed and otherwise for another, and that it fits the model."""

from __future__ import annotations

import pytest

from birdie_zmq.client.core import Job
from birdie_zmq.settings import ClientSettings
from birdie_zmq.tools.bench.texts import Writer
from birdie_zmq.tools.bench.workloads import KINDS, Kind, Sizes, draw, fit, jobs_of
from birdie_zmq.types import GenerateWork, LogLikelihoodWork, RollingWork, Work

SIZES = Sizes(shots=2, max_gen_toks=7, long_words=900)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_requests_and_another_gives_others(kind: Kind) -> None:
    first, again, other = (draw(kind, 5, seed, SIZES) for seed in (3, 3, 4))

    assert first == again
    assert first.documents == other.documents == 5
    assert not {*first.pairs, *first.texts} & {*other.pairs, *other.texts}


def test_a_question_is_asked_once_for_each_of_four_answers() -> None:
    asked = draw("choice", 3, 1, SIZES)

    assert asked.requests == 12
    for number in range(3):
        four = asked.pairs[4 * number : 4 * number + 4]
        assert len({context for context, _ in four}) == 1
        assert all(answer.startswith(" ") for _, answer in four)


def test_examples_stand_before_every_question() -> None:
    contexts = [context for context, _ in draw("fewshot", 6, 1, SIZES).pairs]
    examples, _, _ = contexts[0].rpartition("\n\n")

    assert examples.count("Answer: ") == 2
    assert all(context.startswith(examples) for context in contexts)
    assert contexts[0].count("Answer:") == 3
    assert len(set(contexts)) == 6


def test_examples_are_about_as_long_for_every_seed() -> None:
    lengths = [len(draw("fewshot", 1, seed, SIZES).pairs[0][0].rpartition("\n\n")[0]) for seed in range(40)]

    assert max(lengths) - min(lengths) < 20


def test_texts_have_many_lengths_and_a_long_one_has_its_own() -> None:
    words = [text.count(" ") + 1 for text in draw("rolling", 200, 1, SIZES).texts]
    (long,) = draw("long", 1, 1, SIZES).texts

    assert min(words) < 60 < 300 < max(words)
    assert 900 <= long.count(" ") + 1 < 930


def test_prompts_are_continued_by_as_many_tokens_as_there_is_room_for() -> None:
    asked = draw("generation", 3, 1, SIZES)
    (job,) = jobs_of("generation", asked, SIZES, ClientSettings())

    assert isinstance(job.work, GenerateWork)
    assert job.work.settings.max_gen_toks == 7
    assert sorted(job.items) == [0, 1, 2]


@pytest.mark.parametrize(("kind", "work"), [("choice", LogLikelihoodWork), ("rolling", RollingWork)])
def test_what_is_scored_goes_out_as_lm_eval_sends_it(kind: Kind, work: type[Work]) -> None:
    jobs: list[Job] = list(jobs_of(kind, draw(kind, 9, 1, SIZES), SIZES, ClientSettings(batch_items=4)))

    assert all(isinstance(job.work, work) for job in jobs)
    assert len(jobs) == (9 if kind == "choice" else 3)


@pytest.mark.parametrize(("max_length", "shots"), [(2_048, 5), (256, 2), (150, 1), (96, 0)])
def test_examples_are_as_many_as_fit(max_length: int, shots: int) -> None:
    a_token_for_four = fit(max_length, 0.25)

    assert a_token_for_four.shots == shots
    longest = max(len(context + answer) for context, answer in draw("fewshot", 300, 1, a_token_for_four).pairs)
    assert not shots or longest / 4 <= max_length


def test_a_long_text_fills_the_model_and_fits_it() -> None:
    sizes = fit(4_096, 0.25)
    (text,) = draw("long", 1, 1, sizes).texts

    assert 0.9 * 4_096 < len(text) / 4 <= 4_096
    assert fit(64, 1.0).max_gen_toks == 16


def test_lengths_are_within_their_bounds() -> None:
    lengths = [Writer(1).length(10, 90), *(Writer(seed).length(10, 90) for seed in range(300))]

    assert min(lengths) >= 10
    assert max(lengths) <= 90
    assert sum(length < 30 for length in lengths) == pytest.approx(150, abs=40)

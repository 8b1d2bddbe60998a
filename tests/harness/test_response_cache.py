"""lm_eval's cache answers for one model only, and never gives repeats one drawn answer."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from birdie_zmq.client.batching import keyed
from birdie_zmq.errors import UsageError
from birdie_zmq.harness.response_cache import MARK, claim, is_passed_over, refuse_repeats
from birdie_zmq.types import GenerationParams, SamplingParams

SqliteDict = importlib.import_module("sqlitedict").SqliteDict

GREEDY, DRAWN = GenerationParams(), GenerationParams(sampling=SamplingParams())


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Any]:
    with SqliteDict(str(tmp_path / "cache_rank0.db"), autocommit=True) as opened:
        yield opened


def test_a_new_cache_is_marked_on_the_disk_and_taken_by_the_same_model_again(cache: Any) -> None:
    claim(cache, "one")
    with SqliteDict(cache.filename) as reopened:
        assert dict(reopened) == {MARK: "one"}

    cache["a request"] = -1.0
    claim(cache, "one")
    assert dict(cache) == {MARK: "one", "a request": -1.0}


def test_another_models_cache_is_refused_by_its_name_and_left_as_it_is(cache: Any) -> None:
    claim(cache, "one")
    cache["a request"] = -1.0

    with pytest.raises(UsageError, match=r"another model.*another path to --use_cache, or delete") as caught:
        claim(cache, "two")

    assert cache.filename in caught.value.message
    assert dict(cache) == {MARK: "one", "a request": -1.0}


def test_a_cache_of_nobody_knows_whom_is_refused(cache: Any) -> None:
    cache["a request"] = -1.0

    with pytest.raises(UsageError, match="does not say which model") as caught:
        claim(cache, "one")

    assert cache.filename in caught.value.message
    assert dict(cache) == {"a request": -1.0}


def test_what_lm_eval_never_reads_is_not_put_there() -> None:
    assert is_passed_over("generate_until", ("a", {"do_sample": True}))
    assert not is_passed_over("generate_until", ("a", {"do_sample": False}))
    assert not is_passed_over("generate_until", ("a", {"temperature": 1.0}))
    assert not is_passed_over("loglikelihood", ("a", "b"))
    assert not is_passed_over("loglikelihood_rolling", ("a",))


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ([("a", DRAWN, {"temperature": 1.0}), ("a", DRAWN, {"temperature": 1.0})], True),
        ([("a", DRAWN, {"do_sample": True}), ("a", DRAWN, {"do_sample": True})], False),
        ([("a", DRAWN, {"do_sample": True}), ("a", DRAWN, {"temperature": 1.0})], True),
        ([("a", DRAWN, {"temperature": 1.0}), ("b", DRAWN, {"temperature": 1.0})], False),
        ([("a", GREEDY, {}), ("a", GREEDY, {})], False),
        ([("a", GREEDY, {}), ("a", DRAWN, {"temperature": 1.0})], False),
        ([], False),
    ],
)
def test_repeats_that_are_drawn_by_a_temperature_alone_are_refused(
    asked: list[tuple[str, GenerationParams, dict[str, Any]]], refused: bool
) -> None:
    prompts = keyed([(text, settings) for text, settings, _ in asked], seed=0)
    given = [how for _, _, how in asked]
    if not refused:
        refuse_repeats(prompts, given)
        return

    with pytest.raises(UsageError, match=r"add do_sample=true .* and resume=FILE"):
        refuse_repeats(prompts, given)

"""lm_eval's response cache is bound to one model and never returns one sampled answer for all repeats."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from birdie_zmq.client.batching import assign_random_keys
from birdie_zmq.errors import UsageError
from birdie_zmq.harness.response_cache import IDENTITY_KEY, bind_cache, is_never_cached, reject_sampled_repeats
from birdie_zmq.types import GenerationParams, SamplingParams

SqliteDict = importlib.import_module("sqlitedict").SqliteDict

GREEDY, SAMPLED = GenerationParams(), GenerationParams(sampling=SamplingParams())


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Any]:
    with SqliteDict(str(tmp_path / "cache_rank0.db"), autocommit=True) as opened:
        yield opened


def test_new_cache_is_bound_to_the_model_on_disk(cache: Any) -> None:
    bind_cache(cache, "one")
    with SqliteDict(cache.filename) as reopened:
        assert dict(reopened) == {IDENTITY_KEY: "one"}

    cache["a request"] = -1.0
    bind_cache(cache, "one")
    assert dict(cache) == {IDENTITY_KEY: "one", "a request": -1.0}


def test_cache_of_another_model_is_rejected_unchanged(cache: Any) -> None:
    bind_cache(cache, "one")
    cache["a request"] = -1.0

    with pytest.raises(UsageError, match=r"another model.*another path to --use_cache, or delete") as caught:
        bind_cache(cache, "two")

    assert cache.filename in caught.value.message
    assert dict(cache) == {IDENTITY_KEY: "one", "a request": -1.0}


def test_cache_without_model_identity_is_rejected(cache: Any) -> None:
    cache["a request"] = -1.0

    with pytest.raises(UsageError, match="does not say which model") as caught:
        bind_cache(cache, "one")

    assert cache.filename in caught.value.message
    assert dict(cache) == {"a request": -1.0}


def test_responses_that_lm_eval_never_reads_are_not_cached() -> None:
    assert is_never_cached("generate_until", ("a", {"do_sample": True}))
    assert not is_never_cached("generate_until", ("a", {"do_sample": False}))
    assert not is_never_cached("generate_until", ("a", {"temperature": 1.0}))
    assert not is_never_cached("loglikelihood", ("a", "b"))
    assert not is_never_cached("loglikelihood_rolling", ("a",))


@pytest.mark.parametrize(
    ("items", "rejected"),
    [
        ([("a", SAMPLED, {"temperature": 1.0}), ("a", SAMPLED, {"temperature": 1.0})], True),
        ([("a", SAMPLED, {"do_sample": True}), ("a", SAMPLED, {"do_sample": True})], False),
        ([("a", SAMPLED, {"do_sample": True}), ("a", SAMPLED, {"temperature": 1.0})], True),
        ([("a", SAMPLED, {"temperature": 1.0}), ("b", SAMPLED, {"temperature": 1.0})], False),
        ([("a", GREEDY, {}), ("a", GREEDY, {})], False),
        ([("a", GREEDY, {}), ("a", SAMPLED, {"temperature": 1.0})], False),
        ([], False),
    ],
)
def test_repeats_sampled_by_temperature_alone_are_rejected(
    items: list[tuple[str, GenerationParams, dict[str, Any]]], rejected: bool
) -> None:
    prompts = assign_random_keys([(text, settings) for text, settings, _ in items], seed=0)
    gen_kwargs = [settings for _, _, settings in items]
    if not rejected:
        reject_sampled_repeats(prompts, gen_kwargs)
        return

    with pytest.raises(UsageError, match=r"add do_sample=true .* and resume=FILE"):
        reject_sampled_repeats(prompts, gen_kwargs)

"""The eviction of the prefix cache."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.engine.prefix_cache import CachedPrefix, PrefixCache


def cache_of(limit: int, *sizes: int) -> PrefixCache[str]:
    """Return a cache with the states a, b, c, … of these sizes in bytes."""
    cache = PrefixCache[str](limit)
    for letter, size in zip("abcdef", sizes, strict=False):
        cache.put(letter.encode(), CachedPrefix(letter, 100 * (1 + len(cache)), size))
    return cache


def keys(cache: PrefixCache[str]) -> list[bytes]:
    return list(cache.capacities())


def test_a_state_is_returned_by_its_key() -> None:
    cache = cache_of(10, 3, 4)

    assert cache.get(b"b") == CachedPrefix("b", 200, 4)
    assert len(cache) == 2


def test_a_missing_state_raises_a_key_error() -> None:
    with pytest.raises(KeyError):
        cache_of(10, 3).get(b"b")


def test_the_least_recently_used_are_evicted_until_the_rest_is_within_the_limit() -> None:
    cache = cache_of(10, 4, 4, 4, 4)
    cache.get(b"a")

    cache.trim()

    assert keys(cache) == [b"d", b"a"]
    assert cache.evicted == 2


def test_a_cache_exactly_at_the_limit_evicts_nothing() -> None:
    cache = cache_of(8, 4, 4)

    cache.trim()

    assert keys(cache) == [b"a", b"b"]
    assert cache.evicted == 0


def test_states_in_use_are_kept_whatever_their_size() -> None:
    cache = cache_of(5, 100, 4, 100, 4)

    cache.trim(in_use={b"a", b"c"})

    assert keys(cache) == [b"a", b"c"]
    assert cache.evicted == 2


def test_a_replaced_state_counts_once_and_as_used() -> None:
    cache = cache_of(8, 4, 4)
    cache.put(b"a", CachedPrefix("again", 7, 4))

    cache.trim()
    assert keys(cache) == [b"b", b"a"]
    assert cache.get(b"a").state == "again"

    cache.put(b"c", CachedPrefix("c", 7, 4))
    cache.trim()
    assert keys(cache) == [b"a", b"c"]


def test_the_capacity_of_each_state_is_listed() -> None:
    assert cache_of(10, 1, 1, 1).capacities() == {b"a": 100, b"b": 200, b"c": 300}


def test_clearing_removes_everything_and_does_not_count_as_eviction() -> None:
    cache = cache_of(10, 1, 1)

    cache.clear()

    assert (len(cache), cache.evicted) == (0, 0)


@given(st.lists(st.integers(0, 20), max_size=6), st.integers(0, 40), st.sets(st.sampled_from("abcdef")))
def test_after_a_trim_the_limit_holds_or_only_states_in_use_are_left(
    sizes: list[int], limit: int, in_use: set[str]
) -> None:
    cache = cache_of(limit, *sizes)

    cache.trim({letter.encode() for letter in in_use})

    left = {key.decode() for key in keys(cache)}
    assert left >= in_use & set("abcdef"[: len(sizes)])
    assert len(left) + cache.evicted == len(sizes)
    assert left <= in_use or sum(cache.get(key.encode()).size_bytes for key in left) <= limit

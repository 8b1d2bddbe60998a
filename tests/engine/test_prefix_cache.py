"""Which states are kept, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.engine.prefix_cache import CachedPrefix, PrefixCache


def store_of(limit: int, *sizes: int) -> PrefixCache[str]:
    """A store with states a, b, c, … of so many bytes."""
    store = PrefixCache[str](limit)
    for letter, size in zip("abcdef", sizes, strict=False):
        store.put(letter.encode(), CachedPrefix(letter, 100 * (1 + len(store)), size))
    return store


def names(store: PrefixCache[str]) -> list[bytes]:
    return list(store.known(0))


def test_a_state_is_had_back_by_its_name() -> None:
    store = store_of(10, 3, 4)

    assert store.get(b"b") == CachedPrefix("b", 200, 4)
    assert len(store) == 2


def test_a_state_that_is_not_there_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        store_of(10, 3).get(b"b")


def test_the_least_recently_used_go_first_until_the_rest_is_within_the_bound() -> None:
    store = store_of(10, 4, 4, 4, 4)
    store.get(b"a")

    store.trim()

    assert names(store) == [b"d", b"a"]
    assert store.evicted == 2


def test_what_is_exactly_at_the_bound_stays() -> None:
    store = store_of(8, 4, 4)

    store.trim()

    assert names(store) == [b"a", b"b"]
    assert store.evicted == 0


def test_what_is_in_use_stays_whatever_its_size() -> None:
    store = store_of(5, 100, 4, 100, 4)

    store.trim(in_use={b"a", b"c"})

    assert names(store) == [b"a", b"c"]
    assert store.evicted == 2


def test_a_state_that_is_put_again_counts_once_and_as_used() -> None:
    store = store_of(8, 4, 4)
    store.put(b"a", CachedPrefix("again", 7, 4))

    store.trim()
    assert names(store) == [b"b", b"a"]
    assert store.get(b"a").state == "again"

    store.put(b"c", CachedPrefix("c", 7, 4))
    store.trim()
    assert names(store) == [b"a", b"c"]


def test_only_states_with_enough_slots_are_known() -> None:
    store = store_of(10, 1, 1, 1)

    assert list(store.known(200)) == [b"b", b"c"]
    assert list(store.known(201)) == [b"c"]
    assert list(store.known(301)) == []


def test_clearing_lets_go_of_everything_and_is_no_eviction() -> None:
    store = store_of(10, 1, 1)

    store.clear()

    assert (len(store), store.evicted) == (0, 0)


@given(st.lists(st.integers(0, 20), max_size=6), st.integers(0, 40), st.sets(st.sampled_from("abcdef")))
def test_after_a_trim_the_bound_holds_or_only_what_is_in_use_is_left(
    sizes: list[int], limit: int, in_use: set[str]
) -> None:
    store = store_of(limit, *sizes)

    store.trim({letter.encode() for letter in in_use})

    left = {name.decode() for name in names(store)}
    assert left >= in_use & set("abcdef"[: len(sizes)])
    assert len(left) + store.evicted == len(sizes)
    assert left <= in_use or sum(store.get(name.encode()).size_bytes for name in left) <= limit

"""How long passes become: on models that are quick, slow, compile, or never cease to compile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from birdie_zmq.tools.bench.sizing import Sizing

SECONDS = 10.0


def passes(sizing: Sizing, takes: Callable[[int], float], compiles: Callable[[int], bool]) -> list[int]:
    """The documents of all passes; the last is the one that counts."""
    made: list[int] = []
    while True:
        assert len(made) < 50, "it does not end"
        made.append(sizing.documents)
        if sizing.counts(takes(sizing.documents), compiles(len(made))):
            return made


def never(number: int) -> bool:
    return False


def test_a_quick_model_gets_more_documents_until_a_pass_is_near() -> None:
    assert passes(Sizing(SECONDS, 8), lambda n: n * 0.01, never) == [8, 64, 512]
    assert passes(Sizing(SECONDS, 8), lambda n: 0.0, never)[:3] == [8, 64, 512]


def test_a_slow_model_gets_fewer_and_one_at_least() -> None:
    assert passes(Sizing(SECONDS, 8), lambda n: n * 5.0, never) == [8, 2]
    assert passes(Sizing(SECONDS, 8), lambda n: n * 500.0, never) == [8, 1]


def test_a_pass_that_is_near_is_left_as_it_is() -> None:
    for takes in (5.1, 10.0, 19.9):
        assert passes(Sizing(SECONDS, 8), lambda n, s=takes: s, never) == [8]  # type: ignore[misc]


def test_no_pass_in_which_something_was_compiled_counts() -> None:
    assert passes(Sizing(SECONDS, 8), lambda n: n * 1.0, lambda number: number < 3) == [8, 8, 8]


def test_a_model_that_never_ceases_to_compile_is_given_up_to() -> None:
    assert passes(Sizing(SECONDS, 8), lambda n: n * 1.0, lambda number: True) == [8, 8, 8, 8]


def test_what_a_first_pass_took_too_long_for_is_made_up_for() -> None:
    first = iter([40.0])

    assert passes(Sizing(SECONDS, 8), lambda n: next(first, n * 0.1), lambda number: number == 1) == [8, 2, 16, 100]


def test_a_speed_that_jumps_does_not_keep_it_going() -> None:
    made = passes(Sizing(SECONDS, 8), lambda n: 40.0 if n >= 8 else 1.0, never)

    assert len(made) == 12


@pytest.mark.parametrize(("most", "expected"), [(5, [5]), (100, [8, 64, 100])])
def test_a_bound_is_kept(most: int, expected: list[int]) -> None:
    assert passes(Sizing(SECONDS, 8, most), lambda n: n * 0.01, never) == expected

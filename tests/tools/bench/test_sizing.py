"""Sizes of passes: for fast and slow models, and for models that compile once or always."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from birdie_zmq.tools.bench.sizing import PassSizer

SECONDS = 10.0


def passes(sizing: PassSizer, takes: Callable[[int], float], compiles: Callable[[int], bool]) -> list[int]:
    """Return the documents of all passes; the last pass is the accepted one."""
    made: list[int] = []
    while True:
        assert len(made) < 50, "passes do not end"
        made.append(sizing.documents)
        if sizing.accepts(takes(sizing.documents), compiles(len(made))):
            return made


def never(number: int) -> bool:
    return False


def test_fast_model_gets_more_documents() -> None:
    assert passes(PassSizer(SECONDS, 8), lambda n: n * 0.01, never) == [8, 64, 512]
    assert passes(PassSizer(SECONDS, 8), lambda n: 0.0, never)[:3] == [8, 64, 512]


def test_slow_model_gets_fewer_documents() -> None:
    assert passes(PassSizer(SECONDS, 8), lambda n: n * 5.0, never) == [8, 2]
    assert passes(PassSizer(SECONDS, 8), lambda n: n * 500.0, never) == [8, 1]


def test_pass_near_the_target_is_accepted() -> None:
    for takes in (5.1, 10.0, 19.9):
        assert passes(PassSizer(SECONDS, 8), lambda n, s=takes: s, never) == [8]  # type: ignore[misc]


def test_pass_with_compilation_is_repeated() -> None:
    assert passes(PassSizer(SECONDS, 8), lambda n: n * 1.0, lambda number: number < 3) == [8, 8, 8]


def test_model_that_always_compiles_is_accepted_in_the_end() -> None:
    assert passes(PassSizer(SECONDS, 8), lambda n: n * 1.0, lambda number: True) == [8, 8, 8, 8]


def test_pass_grows_again_after_a_slow_first_pass() -> None:
    first = iter([40.0])

    assert passes(PassSizer(SECONDS, 8), lambda n: next(first, n * 0.1), lambda number: number == 1) == [8, 2, 16, 100]


def test_unsteady_speed_ends_after_the_maximum_of_passes() -> None:
    made = passes(PassSizer(SECONDS, 8), lambda n: 40.0 if n >= 8 else 1.0, never)

    assert len(made) == 12


@pytest.mark.parametrize(("most", "expected"), [(5, [5]), (100, [8, 64, 100])])
def test_document_limit_is_respected(most: int, expected: list[int]) -> None:
    assert passes(PassSizer(SECONDS, 8, most), lambda n: n * 0.01, never) == expected

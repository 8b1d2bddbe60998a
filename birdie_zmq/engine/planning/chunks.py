"""Covering a number of tokens, rows or positions by chunks of a few sizes, at the least cost of padding and calls."""

from __future__ import annotations

from functools import lru_cache


def optimal_chunks(count: int, sizes: tuple[int, ...], call_tokens: int) -> tuple[int, ...]:
    """Cover a count by chunks, largest first, at the least cost of padding and calls.

    Args:
        count: Above 0.
        sizes: The sizes that chunks may have, ascending.
        call_tokens: Cost of each chunk beyond its size.
    """
    most = sizes[-1]
    found = [most] * max(0, -(-count // most) - 2)
    firsts = _first_chunks(sizes, call_tokens)
    rest = count - sum(found)
    while rest > 0:
        found.append(firsts[rest])
        rest -= firsts[rest]
    return tuple(sorted(found, reverse=True))


@lru_cache(maxsize=64)
def _first_chunks(sizes: tuple[int, ...], call_tokens: int) -> list[int]:
    """Return the first chunk of the best cover of each count, up to twice the largest size.

    The rest of a count is covered in the same way. Computed from small counts to large ones, without recursion: 2,048
    tokens may need 512 chunks.
    """
    firsts, costs = [0], [(0, 0)]
    for count in range(1, 2 * sizes[-1] + 1):
        options = []
        for size in sizes:
            cost, number = costs[max(0, count - size)]
            options.append((cost + size + call_tokens, number + 1))
            if size >= count:
                break
        best = min(options)
        costs.append(best)
        firsts.append(sizes[options.index(best)])
    return firsts


def chunk_sizes(count: int, sizes: tuple[int, ...], call_tokens: int) -> list[int]:
    """Cover a count of any size by chunks, as `optimal_chunks` does."""
    largest = max(0, count // sizes[-1] - 1)
    return [sizes[-1]] * largest + list(optimal_chunks(count - largest * sizes[-1], sizes, call_tokens))

"""What the broker remembers for a person: counts on a clock of plain numbers."""

from birdie_zmq.broker.history import BUCKETS, History, Throughput
from birdie_zmq.types import ComputeCounters


def test_what_was_done_is_told_per_second_when_its_bucket_is_over() -> None:
    ring = Throughput(buckets=3, bucket_s=2.0)
    ring.add(100.0, requests=4, tokens=10, padding=2)
    ring.add(101.9, requests=2)
    assert ring.rates(101.9).requests == (0.0, 0.0, 0.0)
    rates = ring.rates(102.0)
    assert (rates.requests, rates.tokens, rates.padding) == ((0.0, 0.0, 3.0), (0.0, 0.0, 5.0), (0.0, 0.0, 1.0))
    assert ring.rates(106.0).requests == (3.0, 0.0, 0.0)
    assert ring.rates(108.0).requests == (0.0, 0.0, 0.0)


def test_a_ring_forgets_what_it_does_not_show() -> None:
    ring = Throughput(buckets=5, bucket_s=1.0)
    for second in range(1_000):
        ring.add(float(second), requests=1)
    assert len(ring._counts) <= 6
    assert ring.rates(1_000.0).requests == (1.0,) * 5


def test_the_ring_is_ten_minutes_long() -> None:
    rates = Throughput().rates(0.0)
    assert len(rates.requests) * rates.bucket_s == 600
    assert len(rates.requests) == BUCKETS


def test_the_same_again_is_counted_and_comes_last() -> None:
    history = History()
    history.happened("lost", "a", 1.0)
    history.happened("gone", "b", 2.0)
    history.happened("lost", "a", 3.0)
    assert [(each.text, each.count, each.at) for each in history.happenings] == [("b", 1, 2.0), ("a", 2, 3.0)]


def test_happenings_have_a_bound_and_so_have_their_texts() -> None:
    history = History()
    for number in range(1_000):
        history.happened("failed", f"{number}\n{'x' * 10_000}", 0.0)
    assert len(history.happenings) == 50
    assert all(len(each.text) < 300 and "\n" not in each.text for each in history.happenings)
    assert history.happenings[-1].text.startswith("999?")


def test_ordinary_refusals_are_counted_and_do_not_alarm() -> None:
    history = History()
    history.refused("unknown-peer", 0.0, is_ordinary=True)
    history.refused("malformed-message", 0.0, is_ordinary=False)
    assert history.refusals == 2
    assert [each.text for each in history.happenings] == ["malformed-message"]


def test_only_what_a_worker_computed_here_is_counted() -> None:
    history = History()
    before = ComputeCounters(tokens=1_000, padding=100, executables=3, compile_seconds=9.0)
    history.computed(None, before, 0.0)
    after = before + ComputeCounters(tokens=50, padding=5, generated=2, executables=1, compile_seconds=0.5)
    history.computed(before, after, 0.0)
    assert history.total == ComputeCounters(tokens=50, padding=5, generated=2, executables=1, compile_seconds=0.5)
    history.computed(after, ComputeCounters(), 0.0)
    assert history.total.tokens == 50
    assert history.throughput.rates(2.0).tokens[-1] == 25.0


def test_a_worker_that_counts_without_end_breaks_no_number() -> None:
    history = History()
    for _ in range(3):
        history.computed(ComputeCounters(), ComputeCounters(tokens=2**53 - 1), 0.0)
    assert history.total.tokens == 2**53 - 1

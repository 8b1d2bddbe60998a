"""The broker's history: totals, throughput and recent problems on a manual clock."""

from birdie_zmq.broker.history import BUCKETS, History, Throughput
from birdie_zmq.types import ComputeCounters


def test_rates_are_reported_when_their_bucket_is_complete() -> None:
    throughput = Throughput(buckets=3, bucket_s=2.0)
    throughput.add(100.0, requests=4, tokens=10, padding=2)
    throughput.add(101.9, requests=2)
    assert throughput.rates(101.9).requests == (0.0, 0.0, 0.0)
    rates = throughput.rates(102.0)
    assert (rates.requests, rates.tokens, rates.padding) == ((0.0, 0.0, 3.0), (0.0, 0.0, 5.0), (0.0, 0.0, 1.0))
    assert throughput.rates(106.0).requests == (3.0, 0.0, 0.0)
    assert throughput.rates(108.0).requests == (0.0, 0.0, 0.0)


def test_the_throughput_drops_old_buckets() -> None:
    throughput = Throughput(buckets=5, bucket_s=1.0)
    for second in range(1_000):
        throughput.add(float(second), requests=1)
    assert len(throughput._counts) <= 6
    assert throughput.rates(1_000.0).requests == (1.0,) * 5


def test_the_throughput_covers_ten_minutes() -> None:
    rates = Throughput().rates(0.0)
    assert len(rates.requests) * rates.bucket_s == 600
    assert len(rates.requests) == BUCKETS


def test_equal_entries_are_counted_and_move_to_the_end() -> None:
    history = History()
    history.record("crashed", "a", 1.0)
    history.record("disconnected", "b", 2.0)
    history.record("crashed", "a", 3.0)
    assert [(each.text, each.count, each.at) for each in history.entries] == [("b", 1, 2.0), ("a", 2, 3.0)]


def test_entries_and_their_texts_are_bounded() -> None:
    history = History()
    for number in range(1_000):
        history.record("failed", f"{number}\n{'x' * 10_000}", 0.0)
    assert len(history.entries) == 50
    assert all(len(each.text) < 300 and "\n" not in each.text for each in history.entries)
    assert history.entries[-1].text.startswith(r"999\nxxx")


def test_expected_refusals_are_counted_but_not_listed() -> None:
    history = History()
    history.record_refusal("unknown-peer", 0.0, is_expected=True)
    history.record_refusal("malformed-message", 0.0, is_expected=False)
    assert history.refusals == 2
    assert [each.text for each in history.entries] == ["malformed-message"]


def test_work_for_an_earlier_broker_is_not_counted() -> None:
    history = History()
    before = ComputeCounters(tokens=1_000, padding=100, executables=3, compile_seconds=9.0)
    history.record_compute(None, before, 0.0)
    after = before + ComputeCounters(tokens=50, padding=5, generated=2, executables=1, compile_seconds=0.5)
    history.record_compute(before, after, 0.0)
    assert history.compute_total == ComputeCounters(
        tokens=50, padding=5, generated=2, executables=1, compile_seconds=0.5
    )
    history.record_compute(after, ComputeCounters(), 0.0)
    assert history.compute_total.tokens == 50
    assert history.throughput.rates(2.0).tokens[-1] == 25.0


def test_totals_stay_within_the_range_of_json_integers() -> None:
    history = History()
    for _ in range(3):
        history.record_compute(ComputeCounters(), ComputeCounters(tokens=2**53 - 1), 0.0)
    assert history.compute_total.tokens == 2**53 - 1

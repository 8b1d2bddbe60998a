"""What a run has cost, in words and numbers."""

from birdie_zmq.harness.run_report import as_record, as_text
from birdie_zmq.types import RunStatistics

REPORT = RunStatistics(
    requests=1200,
    steps=10,
    tokens_requested=30_000,
    tokens_distinct=9_000,
    tokens_computed=10_000,
    tokens_padding=1_000,
    shapes=[(1, 1024), (8, 128)],
    shape_bound=40,
    step_seconds=4.0,
    compile_seconds=2.5,
    idle_seconds=1.0,
    states_evicted=3,
)


def test_shares_and_speed_are_worked_out() -> None:
    record = as_record(REPORT)
    assert record["padding_share"] == 0.1
    assert record["tokens_per_second"] == 2500
    assert record["idle_share"] == 0.2
    assert record["shapes"] == [[1, 1024], [8, 128]]
    assert {"requests", "tokens_distinct", "compile_seconds", "states_evicted", "shape_bound"} <= record.keys()


def test_a_person_reads_the_same_numbers_in_one_line() -> None:
    assert as_text(REPORT) == (
        "1,200 requests, 30,000 tokens asked (9,000 distinct to be scored), 10,000 computed in 10 steps of 2 shapes "
        "(10% padding): 4.0 s, 2,500 tokens a second, device idle 20%, and 2.5 s of compiling"
    )


def test_a_model_that_has_done_nothing_has_no_speed() -> None:
    record = as_record(RunStatistics())
    assert (record["tokens_per_second"], record["idle_share"], record["padding_share"]) == (0, 0, 0)
    assert "distinct" not in as_text(RunStatistics())


def test_what_was_decoded_for_nothing_is_said_where_something_was_generated() -> None:
    report = RunStatistics(requests=2, tokens_requested=50, tokens_generated=30, tokens_thrown_away=10)

    assert "50 tokens asked, 30 generated (25% of what was decoded was thrown away)" in as_text(report)
    assert as_record(report)["tokens_thrown_away"] == 10

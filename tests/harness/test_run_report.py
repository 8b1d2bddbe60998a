"""The statistics of a run, as a record and as a line."""

from birdie_zmq.harness.run_report import format_statistics, model_record, statistics_record
from birdie_zmq.types import ChatTemplates, ModelDescription, ModelSpec, RunStatistics

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
    tokenizer_seconds=0.5,
    states_evicted=3,
)


def test_record_has_shares_and_throughput() -> None:
    record = statistics_record(REPORT)
    assert record["padding_share"] == 0.1
    assert record["tokens_per_second"] == 2500
    assert record["idle_share"] == 0.2
    assert record["shapes"] == [[1, 1024], [8, 128]]
    assert (record["seconds"], record["compile_seconds"], record["idle_seconds"]) == (4.0, 2.5, 1.0)
    assert record["tokenizer_seconds"] == 0.5
    assert {"requests", "tokens_distinct", "compile_seconds", "states_evicted", "shape_bound"} <= record.keys()


def test_statistics_fit_in_one_line() -> None:
    assert format_statistics(REPORT) == (
        "1,200 requests, 30,000 tokens requested (9,000 distinct tokens to score), 10,000 computed in 10 steps of 2 shapes "
        "(10% padding): 4.0 s, 2,500 tokens/s, device idle 20%, 2.5 s of compilation"
    )


def test_a_device_that_never_computed_was_idle_all_the_time() -> None:
    assert statistics_record(RunStatistics(idle_seconds=2.0))["idle_share"] == 1.0


def test_empty_statistics_have_zero_throughput() -> None:
    record = statistics_record(RunStatistics())
    assert (record["tokens_per_second"], record["idle_share"], record["padding_share"]) == (0, 0, 0)
    assert "distinct" not in format_statistics(RunStatistics())


def test_discarded_tokens_are_reported_with_generation() -> None:
    report = RunStatistics(requests=2, tokens_requested=50, tokens_generated=30, tokens_thrown_away=10)

    assert "50 tokens requested, 30 generated (25% of decoded tokens discarded)" in format_statistics(report)
    assert statistics_record(report)["tokens_thrown_away"] == 10


def test_model_record_has_the_parsed_arguments() -> None:
    description = ModelDescription(
        model=ModelSpec(tag="demo", arguments='{"size": "small"}'),
        identity="identity",
        api="api.py",
        api_sha256="0",
        num_parameters=3,
        dtype="float32",
        vocab_size=256,
        max_length=512,
        bos_token_id=None,
        eos_token_id=None,
        engine="jax",
        devices=["cpu:0"],
        versions={"jax": "1"},
        chat=ChatTemplates(),
        report=REPORT,
        process_id=1,
        start_count=1,
    )

    record = model_record(description, {"size": "small"})

    assert (record["model_tag"], record["model_keywords"]) == ("demo", {"size": "small"})
    assert all(name.startswith("model_") for name in record)
    assert {"model_identity", "model_api_sha256", "model_num_parameters", "model_devices"} <= record.keys()

"""model_args and lm_eval's own keywords, told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from birdie_zmq.errors import UsageError
from birdie_zmq.harness.model_args import DEFAULT_MAX_GEN_TOKS, RunArguments, read_arguments
from birdie_zmq.types import ModelSpec, StepLimits


def read(**model_args: Any) -> RunArguments:
    return read_arguments({"model_tag": "demo", **model_args})


def limits(*, batch_rows: int | None = None, **keywords: Any) -> StepLimits:
    model_args = {"model_tag": "demo"} if batch_rows is None else {"model_tag": "demo", "batch_rows": batch_rows}
    return read_arguments(model_args, **keywords).limits


def test_a_tag_alone_is_a_run_of_its_own() -> None:
    assert read() == RunArguments(
        model=ModelSpec(tag="demo"),
        endpoint=None,
        key_file=None,
        api=None,
        engine="jax",
        status_port=None,
        resume=None,
        device=None,
        mesh=None,
        limits=StepLimits(),
        max_gen_toks=DEFAULT_MAX_GEN_TOKS,
        seed=0,
        template_args={},
        thinks=False,
        think_end_token=None,
    )


def test_words_that_say_where_and_how_to_run_are_no_part_of_the_model() -> None:
    arguments = read_arguments(
        {"model_tag": "demo", "endpoint": "tcp://host:1", "batch_rows": 3, "size": "small"},
        batch_size="4",
        max_batch_size=16,
        device="cuda:1",
    )

    assert arguments.model == ModelSpec(tag="demo", arguments='{"size": "small"}')
    assert arguments.endpoint == "tcp://host:1"
    assert arguments.limits == StepLimits(max_rows=4, rows=3)
    assert arguments.device == "cuda:1"


@pytest.mark.parametrize("where", [{"port": 5555}, {"endpoint": "tcp://host:1"}])
def test_a_key_file_goes_with_a_broker_and_is_no_part_of_the_model(where: dict[str, Any]) -> None:
    arguments = read(key_file="keys/alice", **where)

    assert arguments.key_file == Path("keys/alice").absolute()
    assert arguments.model == read().model


def test_an_engine_is_for_a_runs_own_worker_and_does_not_reach_the_page(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.touch()

    assert [read(engine=engine).engine for engine in ("jax", "torch", str(file))] == ["jax", "torch", str(file)]
    assert read(engine="torch").model == read().model
    with pytest.raises(UsageError, match="no engine 'mlx'"):
        read(engine="mlx")
    for where in ({"port": 5555}, {"endpoint": "tcp://host:1"}):
        with pytest.raises(UsageError, match="engine= in model_args is for a run's own worker"):
            read(engine="torch", **where)


def test_a_key_file_is_not_for_a_broker_of_the_runs_own() -> None:
    with pytest.raises(UsageError, match="endpoint= or port="):
        read(key_file="keys/alice")
    with pytest.raises(UsageError, match="key_file=''"):
        read(key_file="", port=5555)


def test_the_given_arguments_are_left_as_they_were() -> None:
    given = {"model_tag": "demo", "port": 5555, "size": "small"}

    read_arguments(given)

    assert given == {"model_tag": "demo", "port": 5555, "size": "small"}


# --- The model -------------------------------------------------------------------------------------------------------


def test_pretrained_is_another_name_for_the_tag() -> None:
    assert read_arguments({"pretrained": "demo"}) == read()
    assert read(pretrained="demo") == read()


def test_two_different_names_for_the_model_are_refused() -> None:
    with pytest.raises(UsageError, match=r"model_tag=demo and pretrained=other .* name two models"):
        read(pretrained="other")


@pytest.mark.parametrize("model_args", [{}, {"model_tag": ""}, {"pretrained": ""}, {"size": "small"}])
def test_a_run_without_a_model_is_refused(model_args: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must name a model"):
        read_arguments(model_args)


def test_a_tag_that_was_read_as_a_number_is_text_again() -> None:
    assert read_arguments({"model_tag": 7}).model.tag == "7"


def test_nested_values_travel_as_they_are() -> None:
    nested = {"layers": [1, {"kind": "local"}], "note": "a=b,c", "name": "é", "rate": 1e-3, "none": None, "on": True}

    assert json.loads(read(nested=nested).model.arguments) == {"nested": nested}


def test_the_order_of_words_does_not_make_another_model() -> None:
    first = read(size="small", seed=1, nested={"a": 1, "b": 2})
    second = read(nested={"b": 2, "a": 1}, seed=1, size="small")

    assert first.model == second.model


def test_any_value_makes_another_model() -> None:
    assert len({read(**words).model.arguments for words in ({}, {"size": 1}, {"size": "1"}, {"size": 1.5})}) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"deep": [float("-inf")]}, object(), b"raw", {1, 2}])
def test_values_that_are_no_json_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match="travel to the worker as JSON, and these do not"):
        read(value=value)


# --- The endpoint and the page ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [1, 5555, 65_535])
def test_a_port_is_one_of_this_machine(port: int) -> None:
    assert read(port=port).endpoint == f"tcp://127.0.0.1:{port}"


@pytest.mark.parametrize("port", [0, -1, 65_536, "5555", "http", 5555.0, True])
def test_what_is_no_port_is_refused(port: object) -> None:
    with pytest.raises(UsageError, match="in model_args is no port"):
        read(port=port)


def test_a_port_and_an_endpoint_are_one_too_many() -> None:
    with pytest.raises(UsageError, match="both endpoint= and port="):
        read(port=5555, endpoint="tcp://127.0.0.1:5555")


def test_a_page_is_found_and_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "api.py"
    page.touch()
    monkeypatch.chdir(tmp_path)

    assert read(api="api.py").api == page.resolve()


@pytest.mark.parametrize("name", ["missing.py", "."])
def test_a_page_that_is_no_file_is_refused_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UsageError, match="there is no page at") as caught:
        read(api=name)

    assert str(tmp_path / name) in caught.value.message


@pytest.mark.parametrize("where", [{"port": 5555}, {"endpoint": "tcp://127.0.0.1:5555"}])
def test_a_page_for_a_worker_that_somebody_else_started_is_refused(tmp_path: Path, where: dict[str, Any]) -> None:
    page = tmp_path / "api.py"
    page.touch()

    with pytest.raises(UsageError, match="given its page by its own --api"):
        read(api=str(page), **where)


def test_a_journal_is_no_part_of_the_model_and_its_path_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = read(resume="answers.journal", size="small")

    assert arguments.resume == tmp_path / "answers.journal"
    assert arguments.model == read(size="small").model
    assert not (tmp_path / "answers.journal").exists()
    assert read(resume=7).resume == tmp_path / "7"


@pytest.mark.parametrize("value", ["", True, False])
def test_a_journal_without_a_name_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match=r"resume=.* must name a file"):
        read(resume=value)


# --- Rows and tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1, "1", "auto", "auto:4"])
def test_a_batch_size_that_lm_eval_fills_in_says_nothing(batch_size: int | str | None) -> None:
    assert limits(batch_size=batch_size) == StepLimits()


@pytest.mark.parametrize("batch_size", [8, "8"])
def test_a_batch_size_above_one_is_the_most_rows(batch_size: int | str) -> None:
    assert limits(batch_size=batch_size) == StepLimits(max_rows=8)


def test_the_smaller_of_two_bounds_holds() -> None:
    assert limits(batch_size="auto", max_batch_size=16) == StepLimits(max_rows=16)
    assert limits(batch_size=8, max_batch_size=16) == StepLimits(max_rows=8)
    assert limits(batch_size=16, max_batch_size=8) == StepLimits(max_rows=8)
    assert limits(batch_size=8, max_batch_size=1) == StepLimits(max_rows=1)


@pytest.mark.parametrize("rows", [1, 3])
def test_batch_rows_are_forced_one_included(rows: int) -> None:
    assert limits(batch_rows=rows) == StepLimits(rows=rows)


@pytest.mark.parametrize("batch_size", [0, -8, "0", "eight", "", "1.5"])
def test_a_batch_size_that_is_no_number_of_rows_is_refused(batch_size: int | str) -> None:
    with pytest.raises(UsageError, match=r"batch_size .* must be"):
        limits(batch_size=batch_size)


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True])
@pytest.mark.parametrize("name", ["batch_rows", "max_gen_toks"])
def test_counts_that_are_no_counts_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{name}=.* must be a whole number above 0"):
        read(**{name: value})


def test_a_max_batch_size_that_is_no_count_is_refused() -> None:
    with pytest.raises(UsageError, match="max_batch_size=0 must be a whole number above 0"):
        limits(max_batch_size=0)


def test_max_gen_toks_is_the_default_of_tasks_that_do_not_say() -> None:
    assert read(max_gen_toks=64).max_gen_toks == 64


@pytest.mark.parametrize(
    ("words", "template_args"),
    [
        ({"chat_template_args": {"tone": "dry"}}, {"tone": "dry"}),
        ({"enable_thinking": False}, {"enable_thinking": False}),
        (
            {"chat_template_args": {"enable_thinking": False, "tone": "dry"}, "enable_thinking": True},
            {"enable_thinking": True, "tone": "dry"},
        ),
    ],
)
def test_variables_of_the_chat_template_are_read(words: dict[str, Any], template_args: dict[str, Any]) -> None:
    arguments = read(**words, think_end_token="</think>")
    assert arguments.template_args == template_args
    assert arguments.thinks is bool(words.get("enable_thinking"))
    assert json.loads(arguments.model.arguments).keys() == {*words, "think_end_token"}  # they reach the page too


@pytest.mark.parametrize(("given", "expected"), [("</think>", "</think>"), (7, 7), ("7", 7), (0, 0)])
def test_the_end_of_thoughts_is_text_or_a_token(given: Any, expected: Any) -> None:
    assert read(think_end_token=given).think_end_token == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"enable_thinking": True}, "needs think_end_token"),
        ({"enable_thinking": "yes"}, "enable_thinking='yes'"),
        ({"chat_template_args": "tone"}, "chat_template_args='tone' must be an object"),
        ({"think_end_token": ""}, "think_end_token=''"),
        ({"think_end_token": -1}, "think_end_token=-1"),
        ({"think_end_token": True}, "think_end_token=True"),
    ],
)
def test_what_thinking_cannot_mean_is_named(words: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(**words)


def test_a_seed_is_read_and_reaches_the_page_too() -> None:
    arguments = read(seed=7)

    assert arguments.seed == 7
    assert arguments.model.arguments == '{"seed": 7}'


@pytest.mark.parametrize("seed", ["seven", 0.5, True])
def test_a_seed_that_is_no_whole_number_is_refused(seed: object) -> None:
    with pytest.raises(UsageError, match=r"seed=.* must be a whole number"):
        read(seed=seed)


@pytest.mark.parametrize(("arguments", "port"), [({}, None), ({"status_port": 0}, 0), ({"status_port": 5556}, 5556)])
def test_a_runs_own_broker_has_a_status_page_where_it_is_asked_for(arguments: dict[str, Any], port: int | None) -> None:
    assert read_arguments({"model_tag": "demo", **arguments}).status_port == port


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"status_port": 70_000}, "status_port=70000 in model_args is no port"),
        ({"status_port": True}, "status_port=True in model_args is no port"),
        ({"status_port": "here"}, "status_port='here' in model_args is no port"),
        ({"status_port": 0, "port": 5555}, "is for a run's own broker"),
    ],
)
def test_a_status_port_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_arguments({"model_tag": "demo", **arguments})

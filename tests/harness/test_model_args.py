"""Parsing of model_args and lm_eval's keywords."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from birdie_zmq.errors import UsageError
from birdie_zmq.harness.model_args import DEFAULT_MAX_GEN_TOKS, RunArguments, parse_model_args
from birdie_zmq.types import ModelSpec, StepLimits


def read(**model_args: Any) -> RunArguments:
    return parse_model_args({"model_tag": "demo", **model_args})


def limits(*, batch_rows: int | None = None, **keywords: Any) -> StepLimits:
    model_args = {"model_tag": "demo"} if batch_rows is None else {"model_tag": "demo", "batch_rows": batch_rows}
    return parse_model_args(model_args, **keywords).limits


def test_model_tag_alone_uses_all_defaults() -> None:
    assert read() == RunArguments(
        model=ModelSpec(tag="demo"),
        model_args={},
        endpoint=None,
        key_file=None,
        allow_group_readable_keys=False,
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
        enable_thinking=False,
        think_end_token=None,
    )


def test_run_arguments_are_not_part_of_the_model() -> None:
    arguments = parse_model_args(
        {"model_tag": "demo", "endpoint": "tcp://host:1", "batch_rows": 3, "size": "small"},
        batch_size="4",
        max_batch_size=16,
        device="cuda:1",
    )

    assert arguments.model == ModelSpec(tag="demo", arguments='{"size": "small"}')
    assert arguments.model_args == {"size": "small"}
    assert arguments.endpoint == "tcp://host:1"
    assert arguments.limits == StepLimits(max_rows=4, rows=3)
    assert arguments.device == "cuda:1"


def test_request_arguments_are_separate_in_the_model() -> None:
    given = {
        "size": "small",
        "seed": 3,
        "chat_template_args": {"b": 1, "a": 2},
        "max_gen_toks": 5,
        "add_bos_token": True,
    }
    arguments = read(**given)

    assert arguments.model == ModelSpec(
        tag="demo",
        arguments='{"add_bos_token": true, "size": "small"}',
        request_arguments=(("chat_template_args", '{"a": 2, "b": 1}'), ("max_gen_toks", "5"), ("seed", "3")),
    )
    assert arguments.model.all_arguments() == arguments.model_args == given


@pytest.mark.parametrize("broker", [{"port": 5555}, {"endpoint": "tcp://host:1"}])
def test_key_file_is_accepted_with_a_broker_and_not_part_of_the_model(broker: dict[str, Any]) -> None:
    arguments = read(key_file="keys/alice", **broker)

    assert arguments.key_file == Path("keys/alice").absolute()
    assert arguments.model == read().model


def test_engine_is_for_the_embedded_worker_and_not_forwarded(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.touch()

    assert [read(engine=engine).engine for engine in ("jax", "torch", str(file))] == ["jax", "torch", str(file)]
    assert read(engine="torch").model == read().model
    with pytest.raises(UsageError, match="no engine 'mlx'"):
        read(engine="mlx")
    for broker in ({"port": 5555}, {"endpoint": "tcp://host:1"}):
        with pytest.raises(UsageError, match="engine= in model_args is for the embedded worker"):
            read(engine="torch", **broker)


def test_key_file_is_rejected_for_the_embedded_broker() -> None:
    with pytest.raises(UsageError, match="endpoint= or port="):
        read(key_file="keys/alice")
    with pytest.raises(UsageError, match="key_file=''"):
        read(key_file="", port=5555)


def test_parsing_does_not_modify_its_input() -> None:
    given = {"model_tag": "demo", "port": 5555, "size": "small"}

    parse_model_args(given)

    assert given == {"model_tag": "demo", "port": 5555, "size": "small"}


# --- The model -------------------------------------------------------------------------------------------------------


def test_pretrained_is_an_alias_of_model_tag() -> None:
    assert parse_model_args({"pretrained": "demo"}) == read()
    assert read(pretrained="demo") == read()


def test_conflicting_model_tag_and_pretrained_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"model_tag=demo and pretrained=other .* name two models"):
        read(pretrained="other")


@pytest.mark.parametrize("model_args", [{}, {"model_tag": ""}, {"pretrained": ""}, {"size": "small"}])
def test_missing_model_is_rejected(model_args: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must name a model"):
        parse_model_args(model_args)


def test_numeric_model_tag_becomes_text() -> None:
    assert parse_model_args({"model_tag": 7}).model.tag == "7"


def test_nested_values_are_forwarded_unchanged() -> None:
    nested = {"layers": [1, {"kind": "local"}], "note": "a=b,c", "name": "é", "rate": 1e-3, "none": None, "on": True}

    arguments = read(nested=nested)

    assert json.loads(arguments.model.arguments) == arguments.model_args == {"nested": nested}


def test_argument_order_does_not_change_the_model() -> None:
    first = read(size="small", seed=1, nested={"a": 1, "b": 2})
    second = read(nested={"b": 2, "a": 1}, seed=1, size="small")

    assert first.model == second.model


def test_each_argument_value_is_a_different_model() -> None:
    assert (
        len({read(**model_args).model.arguments for model_args in ({}, {"size": 1}, {"size": "1"}, {"size": 1.5})}) == 4
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"deep": [float("-inf")]}, object(), b"raw", {1, 2}])
def test_values_that_are_not_json_are_rejected(value: object) -> None:
    with pytest.raises(UsageError, match="sent to the worker as JSON and cannot be encoded"):
        read(value=value)


# --- Endpoint and api.py ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [1, 5555, 65_535])
def test_port_is_on_localhost(port: int) -> None:
    assert read(port=port).endpoint == f"tcp://127.0.0.1:{port}"


@pytest.mark.parametrize("port", [0, -1, 65_536, "5555", "http", 5555.0, True])
def test_invalid_port_is_rejected(port: object) -> None:
    with pytest.raises(UsageError, match="in model_args is not a port"):
        read(port=port)


def test_port_and_endpoint_together_are_rejected() -> None:
    with pytest.raises(UsageError, match="both endpoint= and port="):
        read(port=5555, endpoint="tcp://127.0.0.1:5555")


def test_api_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "api.py"
    path.touch()
    monkeypatch.chdir(tmp_path)

    assert read(api="api.py").api == path.resolve()


@pytest.mark.parametrize("name", ["missing.py", "."])
def test_missing_api_file_is_rejected_with_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UsageError, match="there is no file") as caught:
        read(api=name)

    assert str(tmp_path / name) in caught.value.message


@pytest.mark.parametrize("broker", [{"port": 5555}, {"endpoint": "tcp://127.0.0.1:5555"}])
def test_api_is_rejected_with_a_running_broker(tmp_path: Path, broker: dict[str, Any]) -> None:
    path = tmp_path / "api.py"
    path.touch()

    with pytest.raises(UsageError, match=r"gets its api\.py from its own --api"):
        read(api=str(path), **broker)


def test_journal_path_is_absolute_and_not_part_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = read(resume="answers.journal", size="small")

    assert arguments.resume == tmp_path / "answers.journal"
    assert arguments.model == read(size="small").model
    assert not (tmp_path / "answers.journal").exists()
    assert read(resume=7).resume == tmp_path / "7"


@pytest.mark.parametrize("value", ["", True, False])
def test_resume_without_a_file_name_is_rejected(value: object) -> None:
    with pytest.raises(UsageError, match=r"resume=.* must name a file"):
        read(resume=value)


# --- Rows, tokens and chat -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1, "1", "auto", "auto:4"])
def test_default_batch_size_sets_no_limit(batch_size: int | str | None) -> None:
    assert limits(batch_size=batch_size) == StepLimits()


@pytest.mark.parametrize("batch_size", [8, "8"])
def test_batch_size_above_1_is_the_row_limit(batch_size: int | str) -> None:
    assert limits(batch_size=batch_size) == StepLimits(max_rows=8)


def test_smaller_of_batch_size_and_max_batch_size_wins() -> None:
    assert limits(batch_size="auto", max_batch_size=16) == StepLimits(max_rows=16)
    assert limits(batch_size=8, max_batch_size=16) == StepLimits(max_rows=8)
    assert limits(batch_size=16, max_batch_size=8) == StepLimits(max_rows=8)
    assert limits(batch_size=8, max_batch_size=1) == StepLimits(max_rows=1)


@pytest.mark.parametrize("rows", [1, 3])
def test_batch_rows_sets_the_exact_row_count(rows: int) -> None:
    assert limits(batch_rows=rows) == StepLimits(rows=rows)


@pytest.mark.parametrize("batch_size", [0, -8, "0", "eight", "", "1.5"])
def test_invalid_batch_size_is_rejected(batch_size: int | str) -> None:
    with pytest.raises(UsageError, match=r"batch_size .* must be"):
        limits(batch_size=batch_size)


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True])
@pytest.mark.parametrize("name", ["batch_rows", "max_gen_toks"])
def test_invalid_counts_are_rejected_by_name(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{name}=.* must be an integer above 0"):
        read(**{name: value})


def test_invalid_max_batch_size_is_rejected() -> None:
    with pytest.raises(UsageError, match="max_batch_size=0 must be an integer above 0"):
        limits(max_batch_size=0)


def test_max_gen_toks_sets_the_default_of_tasks() -> None:
    assert read(max_gen_toks=64).max_gen_toks == 64


@pytest.mark.parametrize(
    ("model_args", "template_args"),
    [
        ({"chat_template_args": {"tone": "dry"}}, {"tone": "dry"}),
        ({"enable_thinking": False}, {"enable_thinking": False}),
        (
            {"chat_template_args": {"enable_thinking": False, "tone": "dry"}, "enable_thinking": True},
            {"enable_thinking": True, "tone": "dry"},
        ),
    ],
)
def test_chat_template_variables_are_parsed(model_args: dict[str, Any], template_args: dict[str, Any]) -> None:
    arguments = read(**model_args, think_end_token="</think>")
    assert arguments.template_args == template_args
    assert arguments.enable_thinking is bool(model_args.get("enable_thinking"))
    assert arguments.model_args.keys() == {*model_args, "think_end_token"}  # forwarded too


@pytest.mark.parametrize(("given", "expected"), [("</think>", "</think>"), (7, 7), ("7", 7), (0, 0)])
def test_think_end_token_is_text_or_token_id(given: Any, expected: Any) -> None:
    assert read(think_end_token=given).think_end_token == expected


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ({"enable_thinking": True}, "needs think_end_token"),
        ({"enable_thinking": "yes"}, "enable_thinking='yes'"),
        ({"chat_template_args": "tone"}, "chat_template_args='tone' must be an object"),
        ({"think_end_token": ""}, "think_end_token=''"),
        ({"think_end_token": -1}, "think_end_token=-1"),
        ({"think_end_token": True}, "think_end_token=True"),
    ],
)
def test_invalid_thinking_arguments_are_named(model_args: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(**model_args)


def test_seed_is_parsed_and_forwarded() -> None:
    arguments = read(seed=7)

    assert arguments.seed == 7
    assert arguments.model.request_arguments == (("seed", "7"),)


@pytest.mark.parametrize("seed", ["seven", 0.5, True])
def test_non_integer_seed_is_rejected(seed: object) -> None:
    with pytest.raises(UsageError, match=r"seed=.* must be an integer"):
        read(seed=seed)


@pytest.mark.parametrize(("arguments", "port"), [({}, None), ({"status_port": 0}, 0), ({"status_port": 5556}, 5556)])
def test_status_port_is_parsed(arguments: dict[str, Any], port: int | None) -> None:
    assert parse_model_args({"model_tag": "demo", **arguments}).status_port == port


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"status_port": 70_000}, "status_port=70000 in model_args is not a port"),
        ({"status_port": True}, "status_port=True in model_args is not a port"),
        ({"status_port": "here"}, "status_port='here' in model_args is not a port"),
        ({"status_port": 0, "port": 5555}, "is for the embedded broker"),
    ],
)
def test_invalid_status_port_is_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_model_args({"model_tag": "demo", **arguments})


def test_a_group_readable_key_is_accepted_only_with_its_argument() -> None:
    arguments = {"model_tag": "demo", "port": 5555, "key_file": "alice.key"}
    assert not parse_model_args(arguments).allow_group_readable_keys
    assert parse_model_args({**arguments, "allow_group_readable_keys": True}).allow_group_readable_keys
    with pytest.raises(UsageError, match="allow_group_readable_keys='perhaps' in model_args must be True or False"):
        parse_model_args({**arguments, "allow_group_readable_keys": "perhaps"})

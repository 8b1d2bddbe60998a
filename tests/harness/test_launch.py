"""lm_eval that a launcher has started as several processes, and the name of the model that lm_eval reads."""

from __future__ import annotations

import logging

import pytest

from birdie_zmq.errors import UsageError
from birdie_zmq.harness.launch import check_single_process, pass_model_name, warn_of_missing_name


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
        {"PMI_SIZE": "2", "PMI_RANK": "1"},
    ],
)
def test_one_of_several_processes_is_refused(environment: dict[str, str]) -> None:
    size = next(value for name, value in environment.items() if "SIZE" in name or "NUM_TASKS" in name)

    with pytest.raises(UsageError, match=rf"lm_eval was started as {size} processes .*Start lm_eval once"):
        check_single_process(environment)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "8"},  # a job script may export it for other programs
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # the script of a job that has several tasks
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"LOCAL_RANK": "0"},
        {"WORLD_SIZE": "many", "RANK": "0"},
    ],
)
def test_a_single_process_is_accepted(environment: dict[str, str]) -> None:
    check_single_process(environment)


def test_a_local_rank_with_which_lm_eval_drops_the_results_is_refused() -> None:
    with pytest.raises(UsageError, match=r"LOCAL_RANK=1 is set, with which lm_eval .* no results"):
        check_single_process({"LOCAL_RANK": "1"})


def test_the_model_tag_is_passed_as_pretrained_to_lm_eval_and_its_tasks() -> None:
    model_args = {"model_tag": "mine", "engine": "jax"}
    metadata = {"model_tag": "mine", "engine": "jax", "max_seq_lengths": [4096]}

    pass_model_name(model_args, metadata)

    assert model_args == {"model_tag": "mine", "engine": "jax", "pretrained": "mine"}
    assert metadata == {"model_tag": "mine", "engine": "jax", "max_seq_lengths": [4096], "pretrained": "mine"}


def test_a_name_that_was_given_is_kept() -> None:
    model_args, metadata = {"pretrained": "mine"}, {"pretrained": "mine", "tokenizer": "other"}

    pass_model_name(model_args, metadata)

    assert model_args == {"pretrained": "mine"}
    assert metadata == {"pretrained": "mine", "tokenizer": "other"}


@pytest.mark.parametrize("metadata", [None, {"model_tag": "another"}])
def test_metadata_of_another_run_is_left_alone(metadata: dict[str, str] | None) -> None:
    before = None if metadata is None else dict(metadata)

    pass_model_name({"model_tag": "mine"}, metadata)

    assert metadata == before


@pytest.mark.parametrize(
    ("model_args", "warned"),
    [
        ("model_tag=demo", True),
        ("model_tag=demo,engine=torch", True),
        ("pretrained=demo", False),
        ("model_tag=demo,peft=adapter", False),
        ("", False),
    ],
)
def test_a_text_without_a_name_is_warned_of(model_args: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_missing_name(model_args)

    assert ["pretrained=" in record.getMessage() for record in caplog.records] == [True] * warned

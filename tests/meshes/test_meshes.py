"""A model on a mesh of devices answers as it does on one device, and each device holds only its shard."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.meshes.child import BOTH, MESHES, MODEL

ROOT = Path(__file__).resolve().parent.parent.parent
# Executables are as correct without the optimisation passes, which would take most of the time.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
CASES = [("checkpoints", "llama", mesh) for mesh in MESHES]
CASES += [("checkpoints", name, BOTH) for name in ("patterned", "routed")]
CASES += [("user_modules", name, BOTH) for name in ("rnn", "user_module", "bare", "score")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of both child processes, which run in parallel."""
    return results_of({suite: tmp_path_factory.mktemp(suite) for suite in ("checkpoints", "user_modules")})


def results_of(directories: dict[str, Path]) -> dict[str, Any]:
    """Run a child process for each suite with a directory, in parallel, and return their results."""
    environment = {**os.environ, "XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    started = {}
    for suite, directory in directories.items():
        command = [sys.executable, "-W", "error", "-m", "tests.meshes.child", suite, str(directory)]
        pipe = subprocess.PIPE
        started[suite] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)
    printed = {suite: child.communicate() for suite, child in started.items()}
    for suite, child in started.items():
        assert child.returncode == 0, printed[suite][1]
    return {suite: json.loads(output.splitlines()[-1]) for suite, (output, _) in printed.items()}


@pytest.mark.parametrize(("suite", "name", "mesh"), CASES)
def test_scores_and_texts_equal_those_of_one_device(results: dict[str, Any], suite: str, name: str, mesh: str) -> None:
    assert_same(results[suite]["answers"][name], mesh)


@pytest.mark.parity
@pytest.mark.variant
def test_a_recurrence_answers_as_on_one_device(tmp_path: Path) -> None:
    answers = results_of({"recurrent": tmp_path / "recurrent"})["recurrent"]["answers"]["recurrent"]
    for mesh in MESHES:
        assert_same(answers, mesh)


def assert_same(answers: dict[str, Any], mesh: str) -> None:
    """Check that the answers on a mesh are those of one device."""
    one, sharded = answers["one"], answers[mesh]
    assert one.keys() == sharded.keys()
    assert len(set(one["pairs"])) == len(one["pairs"]), "a model with equal scores for everything proves nothing"
    for kind in sharded.keys() & {"pairs", "texts"}:
        np.testing.assert_allclose(sharded[kind], one[kind], rtol=0, atol=1e-4, err_msg=kind)
    for kind in sharded.keys() & {"greedy", "generated", "sampled", "penalised"}:
        assert sharded[kind] == one[kind], kind


@pytest.mark.parametrize(("suite", "name", "mesh"), CASES)
def test_steps_of_several_rows_have_equally_many_for_each_data_shard(
    results: dict[str, Any], suite: str, name: str, mesh: str
) -> None:
    groups = {"data:8": 8, "model:8": 1, BOTH: 2}[mesh]
    rows = {rows for rows, _ in results[suite]["answers"][name][mesh]["shapes"]}
    assert all(count == 1 or count % groups == 0 for count in rows)
    assert max(rows) > 1


@pytest.mark.parametrize("mesh", ["data:4", BOTH])
def test_trees_behind_a_state_score_as_on_one_device(results: dict[str, Any], mesh: str) -> None:
    behind = results["checkpoints"]["behind_a_state"]
    np.testing.assert_allclose(behind[mesh], behind["one"], rtol=0, atol=1e-4)


def test_sharded_arrays_stay_sharded_during_computation(results: dict[str, Any]) -> None:
    gathered = results["checkpoints"]["gathered"][BOTH]
    for kind in ("create", "extend", "prefill", "put-path", "tree"):
        assert gathered[kind] == 0, kind
    # Only the largest logit of each device and its token: no logits, no weights and no states.
    assert 0 < gathered["decode"] <= 4 * 6
    assert 0 < gathered["score"] <= 4 * 256


def test_rows_that_cannot_be_sharded_are_replicated(results: dict[str, Any]) -> None:
    forced, plain = results["user_modules"]["forced"], results["user_modules"]["answers"]["user_module"]["one"]
    assert {rows for rows, _ in forced["shapes"]} == {3}
    np.testing.assert_allclose(forced["pairs"], plain["pairs"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("mesh", MESHES)
def test_each_device_has_its_shard_of_the_weights(results: dict[str, Any], mesh: str) -> None:
    shards = results["checkpoints"]["shards"][mesh]
    size = {"data:8": 1, "model:8": 8, BOTH: 4}[mesh]
    weight_map = MODEL.weight_map()
    groups = {"outer": weight_map.outer, "layers[0]": weight_map.stacks[0].specs}
    assert len(shards) == len(list(weight_map.specs()))
    sharded_count = 0
    for group, tensors in groups.items():
        for name, spec in tensors.items():
            shape, shapes = shards[f".{group}['{name}']"]
            expected = list(shape)
            if spec.shard is not None and spec.shard.parts % size == 0:
                expected[spec.shard.axis + (group != "outer")] //= size
                sharded_count += expected != shape
            assert shapes == [expected], name
    assert sharded_count == {1: 0, 8: 7, 4: 9}[size]  # with eight shards all but keys and values, which have four heads


def test_stacked_layers_of_a_trainer_are_sharded_alike(results: dict[str, Any]) -> None:
    native = results["checkpoints"]["native"]
    assert native["difference"] == 0
    assert native["shards"] == results["checkpoints"]["shards"][BOTH]


def test_a_user_module_shards_its_own_weights(results: dict[str, Any]) -> None:
    shards = results["user_modules"]["shards"]
    assert shards["['blocks']['up']"] == [[2, 64, 256], [[2, 64, 64]]]
    assert shards["['blocks']['queries_keys_values']"] == [[2, 64, 3, 4, 16], [[2, 64, 3, 1, 16]]]


def test_the_host_reads_one_shard_of_a_tensor_at_a_time(results: dict[str, Any]) -> None:
    largest = results["checkpoints"]["largest_read"]
    for name, place in MODEL.weight_map().tensors():
        assert largest[name] == math.prod(place.spec.shape) // (4 if place.spec.shard else 1), name


def test_states_are_sharded_like_the_heads(results: dict[str, Any]) -> None:
    states = results["checkpoints"]["states"]
    both, model = states[BOTH], states["model:8"]
    rows, layers, heads, capacity, width = both["shape"]
    assert both["shard"] == [rows // 2, layers, heads // 4, capacity, width]
    assert both["row_bytes"] < both["row_bytes_unsharded"] / 3
    assert model["shard"] == model["shape"]  # four heads cannot be sharded over eight devices
    assert model["row_bytes"] == model["row_bytes_unsharded"]


def test_an_impossible_mesh_is_rejected_with_the_numbers(results: dict[str, Any]) -> None:
    errors = results["checkpoints"]["errors"]
    assert "needs 12 devices, and the model process sees 8 (cpu)" in errors["too many devices"]
    assert "model:7, which divides none of this model's weights" in errors["divides nothing"]
    assert "2, 3, 4, 6, 8, 11, 12 would" in errors["divides nothing"]

"""A model spread over a mesh of devices answers as it does on one, and no device has more of it than its part."""

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
# What is compiled is as right without the passes that make it fast, and most of the time here goes into them.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
CASES = [("checkpoints", "llama", mesh) for mesh in MESHES]
CASES += [("pages", name, BOTH) for name in ("rnn", "page", "bare", "score")]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What both children have found out, side by side."""
    environment = {**os.environ, "XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    started = {}
    for what in ("checkpoints", "pages"):
        command = [sys.executable, "-W", "error", "-m", "tests.meshes.child", what, str(tmp_path_factory.mktemp(what))]
        pipe = subprocess.PIPE
        started[what] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)
    printed = {what: child.communicate() for what, child in started.items()}
    for what, child in started.items():
        assert child.returncode == 0, printed[what][1]
    return {what: json.loads(output.splitlines()[-1]) for what, (output, _) in printed.items()}


@pytest.mark.parametrize(("what", "name", "mesh"), CASES)
def test_scores_and_texts_are_those_of_one_device(found: dict[str, Any], what: str, name: str, mesh: str) -> None:
    answers = found[what]["answers"][name]
    one, spread = answers["one"], answers[mesh]
    assert one.keys() == spread.keys()
    assert len(set(one["pairs"])) == len(one["pairs"]), "a model that says the same of everything shows nothing"
    for kind in spread.keys() & {"pairs", "texts"}:
        np.testing.assert_allclose(spread[kind], one[kind], rtol=0, atol=1e-4, err_msg=kind)
    for kind in spread.keys() & {"greedy", "continued", "drawn"}:
        assert spread[kind] == one[kind], kind


@pytest.mark.parametrize(("what", "name", "mesh"), CASES)
def test_steps_of_several_rows_have_as_many_for_each_group(
    found: dict[str, Any], what: str, name: str, mesh: str
) -> None:
    groups = {"data:8": 8, "model:8": 1, BOTH: 2}[mesh]
    rows = {rows for rows, _ in found[what]["answers"][name][mesh]["shapes"]}
    assert all(count == 1 or count % groups == 0 for count in rows)
    assert max(rows) > 1


@pytest.mark.parametrize("mesh", ["data:4", BOTH])
def test_trees_behind_a_state_score_as_on_one_device(found: dict[str, Any], mesh: str) -> None:
    behind = found["checkpoints"]["behind"]
    np.testing.assert_allclose(behind[mesh], behind["one"], rtol=0, atol=1e-4)


def test_what_is_divided_stays_divided_while_it_is_computed_with(found: dict[str, Any]) -> None:
    gathered = found["checkpoints"]["gathered"][BOTH]
    for kind in ("create", "read", "copy", "put", "branch"):
        assert gathered[kind] == 0, kind
    # The largest logit that each device has seen, and its token: no logits, no weights and no states.
    assert 0 < gathered["decode"] <= 4 * 6
    assert 0 < gathered["score"] <= 4 * 256


def test_rows_that_cannot_be_dealt_out_are_whole_on_each_device(found: dict[str, Any]) -> None:
    forced, plain = found["pages"]["forced"], found["pages"]["answers"]["page"]["one"]
    assert {rows for rows, _ in forced["shapes"]} == {3}
    np.testing.assert_allclose(forced["pairs"], plain["pairs"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("mesh", MESHES)
def test_each_device_has_its_part_of_the_weights(found: dict[str, Any], mesh: str) -> None:
    parts = found["checkpoints"]["parts"][mesh]
    size = {"data:8": 1, "model:8": 8, BOTH: 4}[mesh]
    layout = MODEL.layout()
    assert len(parts) == len(layout.outer) + len(layout.layers)
    divided = 0
    for group, tensors in (("outer", layout.outer), ("layers", layout.layers)):
        for name, stored in tensors.items():
            shape, shapes = parts[f".{group}['{name}']"]
            expected = list(shape)
            if stored.cut is not None and stored.cut.parts % size == 0:
                expected[stored.cut.axis + (group == "layers")] //= size
                divided += expected != shape
            assert shapes == [expected], name
    assert divided == {1: 0, 8: 7, 4: 9}[size]  # of eight parts all but keys and values, which have four heads


def test_a_page_has_divided_its_own(found: dict[str, Any]) -> None:
    parts = found["pages"]["parts"]
    assert parts["['blocks']['up']"] == [[2, 64, 256], [[2, 64, 64]]]
    assert parts["['blocks']['queries_keys_values']"] == [[2, 64, 3, 4, 16], [[2, 64, 3, 1, 16]]]


def test_the_host_reads_a_part_of_a_tensor_at_a_time(found: dict[str, Any]) -> None:
    largest = found["checkpoints"]["largest_read"]
    for name, place in MODEL.layout().places():
        assert largest[name] == math.prod(place.stored.shape) // (4 if place.stored.cut else 1), name


def test_states_are_divided_as_the_heads_are(found: dict[str, Any]) -> None:
    states = found["checkpoints"]["states"]
    both, model = states[BOTH], states["model:8"]
    rows, layers, heads, slots, width = both["shape"]
    assert both["part"] == [rows // 2, layers, heads // 4, slots, width]
    assert both["row_bytes"] < both["row_bytes_alone"] / 3
    assert model["part"] == model["shape"]  # eight devices cannot have four heads
    assert model["row_bytes"] == model["row_bytes_alone"]


def test_a_mesh_that_cannot_be_is_refused_with_the_numbers(found: dict[str, Any]) -> None:
    refusals = found["checkpoints"]["refusals"]
    assert "needs 12 devices, and the model process sees 8 (cpu)" in refusals["too many"]
    assert "model:7, which divides none of this model's weights" in refusals["divides nothing"]
    assert "2, 3, 4, 6, 8, 11, 12 would" in refusals["divides nothing"]

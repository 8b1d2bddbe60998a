"""End-to-end tests of a custom engine in one file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from lm_eval.api.instance import Instance

from birdie_zmq.errors import EngineError, ModelLoadError, UsageError
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import Programs
from tests.model_files import numpy_model

PAIRS = [
    ("the cat sat on", " the mat"),
    ("the cat sat on", " a dog"),
    ("", "alone"),
    ("the cat sat", " on"),
    ("x" * 100, "long"),  # longer than the model's max_length
]
TEXTS = ["the cat sat on the mat", "", "an owl" * 30]
PROMPTS = ["the cat", "the cat sat on", "an"]
SAMPLED = {"do_sample": True, "temperature": 2.0, "max_gen_toks": 12}


def log_probabilities(tokens: list[int], seed: int = 0) -> npt.NDArray[np.float64]:
    """Return the log-probabilities [t, v] of one row, computed alone."""
    logits = numpy_model.logits(numpy_model.weights(seed), np.array([tokens], np.int32))[0].astype(np.float64)
    normalised: npt.NDArray[np.float64] = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return normalised


def expected_score(context: str, continuation: str, seed: int = 0) -> tuple[float, bool]:
    context_tokens = list(context.encode()) or [numpy_model.BOS]
    tokens = (context_tokens + list(continuation.encode()))[-numpy_model.MAX_LENGTH - 1 :]
    count = len(continuation)
    logprobs = log_probabilities(tokens[:-1], seed)[-count:]
    targets = tokens[-count:]
    return float(logprobs[np.arange(count), targets].sum()), bool((logprobs.argmax(axis=-1) == targets).all())


def expected_text(prompt: str, count: int) -> str:
    tokens = list(prompt.encode())
    for _ in range(count):
        tokens.append(int(log_probabilities(tokens)[-1].argmax()))
        if tokens[-1] == numpy_model.EOS:
            tokens.pop()
            break
    return numpy_model.Bytes().decode(tokens[len(prompt) :])


def instances(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [instance(kind, argument, number) for number, argument in enumerate(arguments)]


def open_model(model_files: Path, **keywords: Any) -> BirdieZMQ:
    return BirdieZMQ(
        api=str(model_files / "numpy_model.py"),
        engine=str(model_files / "numpy_engine.py"),
        **{"model_tag": "pair", **keywords},
    )


@pytest.mark.parametrize("form", ["pair", "callable", "parts", "hungry"])
def test_custom_engine_equals_a_direct_computation(
    model_files: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_model(model_files, model_tag=form) as lm:
        scores = lm.loglikelihood(instances("loglikelihood", PAIRS * 30), disable_tqdm=True)[: len(PAIRS)]
        rolling_scores = lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,) for text in TEXTS]), True)
        settings = {"until": [], "max_gen_toks": 9}
        texts = lm.generate_until(instances("generate_until", [(prompt, settings) for prompt in PROMPTS]), True)
        info = lm.get_model_info()

    expected = [expected_score(*pair) for pair in PAIRS]
    np.testing.assert_allclose([score for score, _ in scores], [score for score, _ in expected], atol=1e-4)
    assert [greedy for _, greedy in scores] == [greedy for _, greedy in expected]
    assert rolling_scores[0] == pytest.approx(expected_score("", TEXTS[0])[0], abs=1e-4)
    assert rolling_scores[1] == 0
    assert texts == [expected_text(prompt, 9) for prompt in PROMPTS]
    assert len(set(texts)) == 3
    assert info["model_engine"] == "numpy"
    assert info["model_devices"] == ["cpu"]
    assert ("steps are smaller from now on" in caplog.text or "out of memory" in caplog.text) == (form == "hungry")


def test_sampling_depends_only_on_seed_and_repeat(model_files: Path) -> None:
    def run(count: int, **keywords: Any) -> list[str]:
        with open_model(model_files, **keywords) as lm:
            requests = instances("generate_until", [(prompt, SAMPLED) for prompt in PROMPTS[:count] * 2])
            return lm.generate_until(requests, disable_tqdm=True)

    first, one_row_per_step, fewer_prompts, other_seed = run(3), run(3, batch_rows=1), run(1), run(3, seed=7)

    assert first == one_row_per_step
    assert fewer_prompts == [first[0], first[3]]
    assert first[0] != first[3]
    assert first != other_seed


def test_engine_file_is_part_of_the_model_identity(model_files: Path, tmp_path: Path) -> None:
    changed = tmp_path / "numpy_engine.py"
    changed.write_text((model_files / "numpy_engine.py").read_text() + "\n# changed\n")
    identities = []
    for engine in (model_files / "numpy_engine.py", model_files / "numpy_engine.py", changed):
        with (
            open_model(model_files)
            if engine != changed
            else BirdieZMQ(model_tag="pair", api=str(model_files / "numpy_model.py"), engine=str(changed)) as lm
        ):
            identities.append(lm.get_model_info()["model_identity"])
    assert identities[0] == identities[1] != identities[2]


def test_model_file_can_read_the_engine_name(model_files: Path) -> None:
    with pytest.raises(ModelLoadError, match=rf"LookupError: {re.escape(str(model_files / 'numpy_engine.py'))}"):
        open_model(model_files, model_tag="engine")


def test_engine_import_failure_is_reported(model_files: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_framework\n")
    with pytest.raises(EngineError, match="needs no_such_framework, which is not installed"):
        BirdieZMQ(model_tag="pair", api=str(model_files / "numpy_model.py"), engine=str(tmp_path / "broken.py"))


def test_built_in_model_with_a_custom_engine_is_rejected(model_files: Path) -> None:
    with pytest.raises(UsageError, match=r"for the engines jax and torch; .* write load_model"):
        BirdieZMQ(model_tag="demo", engine=str(model_files / "numpy_engine.py"))


def test_worker_with_a_custom_engine_switches_models(programs: Programs, model_files: Path) -> None:
    _, endpoint = programs.broker()
    engine = str(model_files / "numpy_engine.py")
    worker = programs.worker(endpoint, model_files / "numpy_model.py", "--engine", engine)
    assert f"engine {engine}, models from" in worker.output
    processes = set()
    for seed in (0, 5, 0):
        with BirdieZMQ(model_tag="pair", seed=seed, endpoint=endpoint) as lm:
            ((score, _),) = lm.loglikelihood(instances("loglikelihood", PAIRS[:1]), disable_tqdm=True)
            processes.add(lm._description.process_id)
        assert score == pytest.approx(expected_score(*PAIRS[0], seed)[0], abs=1e-4)
    assert len(processes) == 3

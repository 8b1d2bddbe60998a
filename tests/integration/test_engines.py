"""An engine of somebody's own, in one file, through the whole path."""

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
from tests.integration.conftest import Programs
from tests.model_files import numpy_model

PAIRS = [
    ("the cat sat on", " the mat"),
    ("the cat sat on", " a dog"),
    ("", "alone"),
    ("the cat sat", " on"),
    ("x" * 100, "long"),  # longer than the model
]
TEXTS = ["the cat sat on the mat", "", "an owl" * 30]
PROMPTS = ["the cat", "the cat sat on", "an"]
SAMPLED = {"do_sample": True, "temperature": 2.0, "max_gen_toks": 12}


def direct(tokens: list[int], seed: int = 0) -> npt.NDArray[np.float64]:
    """Log-probabilities [t, v] of one row by itself."""
    at = numpy_model.logits(numpy_model.weights(seed), np.array([tokens], np.int32))[0].astype(np.float64)
    normalised: npt.NDArray[np.float64] = at - np.log(np.exp(at).sum(axis=-1, keepdims=True))
    return normalised


def expected_score(context: str, continuation: str, seed: int = 0) -> tuple[float, bool]:
    start = list(context.encode()) or [numpy_model.BOS]
    tokens = (start + list(continuation.encode()))[-numpy_model.MAX_LENGTH - 1 :]
    count = len(continuation)
    at = direct(tokens[:-1], seed)[-count:]
    targets = tokens[-count:]
    return float(at[np.arange(count), targets].sum()), bool((at.argmax(axis=-1) == targets).all())


def expected_text(prompt: str, count: int) -> str:
    tokens = list(prompt.encode())
    for _ in range(count):
        tokens.append(int(direct(tokens)[-1].argmax()))
        if tokens[-1] == numpy_model.EOS:
            tokens.pop()
            break
    return numpy_model.Bytes().decode(tokens[len(prompt) :])


def asked(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, argument, number) for number, argument in enumerate(arguments)]


def open_model(pages: Path, **keywords: Any) -> BirdieZMQ:
    return BirdieZMQ(
        api=str(pages / "numpy_model.py"), engine=str(pages / "numpy_engine.py"), **{"model_tag": "pair", **keywords}
    )


@pytest.mark.parametrize("form", ["pair", "callable", "parts", "hungry"])
def test_an_engine_in_one_file_answers_as_a_direct_computation(
    pages: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_model(pages, model_tag=form) as lm:
        scores = lm.loglikelihood(asked("loglikelihood", PAIRS * 30), disable_tqdm=True)[: len(PAIRS)]
        rolled = lm.loglikelihood_rolling(asked("loglikelihood_rolling", [(text,) for text in TEXTS]), True)
        settings = {"until": [], "max_gen_toks": 9}
        texts = lm.generate_until(asked("generate_until", [(prompt, settings) for prompt in PROMPTS]), True)
        info = lm.get_model_info()

    expected = [expected_score(*pair) for pair in PAIRS]
    np.testing.assert_allclose([score for score, _ in scores], [score for score, _ in expected], atol=1e-4)
    assert [greedy for _, greedy in scores] == [greedy for _, greedy in expected]
    assert rolled[0] == pytest.approx(expected_score("", TEXTS[0])[0], abs=1e-4)
    assert rolled[1] == 0
    assert texts == [expected_text(prompt, 9) for prompt in PROMPTS]
    assert len(set(texts)) == 3
    assert info["model_engine"] == "numpy"
    assert info["model_devices"] == ["cpu"]
    assert ("steps are smaller from now on" in caplog.text or "no room" in caplog.text) == (form == "hungry")


def test_what_is_drawn_depends_on_seed_and_repeat_alone(pages: Path) -> None:
    def run(count: int, **keywords: Any) -> list[str]:
        with open_model(pages, **keywords) as lm:
            requests = asked("generate_until", [(prompt, SAMPLED) for prompt in PROMPTS[:count] * 2])
            return lm.generate_until(requests, disable_tqdm=True)

    first, again, alone, other = run(3), run(3, batch_rows=1), run(1), run(3, seed=7)

    assert first == again
    assert alone == [first[0], first[3]]
    assert first[0] != first[3]
    assert first != other


def test_the_engine_is_part_of_what_model_this_is(pages: Path, tmp_path: Path) -> None:
    changed = tmp_path / "numpy_engine.py"
    changed.write_text((pages / "numpy_engine.py").read_text() + "\n# changed\n")
    identities = []
    for engine in (pages / "numpy_engine.py", pages / "numpy_engine.py", changed):
        with (
            open_model(pages)
            if engine != changed
            else BirdieZMQ(model_tag="pair", api=str(pages / "numpy_model.py"), engine=str(changed)) as lm
        ):
            identities.append(lm.get_model_info()["model_identity"])
    assert identities[0] == identities[1] != identities[2]


def test_a_page_may_read_which_engine_it_is_for(pages: Path) -> None:
    with pytest.raises(ModelLoadError, match=rf"LookupError: {re.escape(str(pages / 'numpy_engine.py'))}"):
        open_model(pages, model_tag="engine")


def test_an_engine_that_cannot_be_imported_is_said_at_the_prompt(pages: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_framework\n")
    with pytest.raises(EngineError, match="needs no_such_framework, which is not installed"):
        BirdieZMQ(model_tag="pair", api=str(pages / "numpy_model.py"), engine=str(tmp_path / "broken.py"))


def test_the_built_in_models_are_for_built_in_engines(pages: Path) -> None:
    with pytest.raises(UsageError, match=r"for the engines jax and torch; .* write load_model"):
        BirdieZMQ(model_tag="demo", engine=str(pages / "numpy_engine.py"))


def test_a_worker_at_a_broker_has_its_own_engine_and_changes_models(programs: Programs, pages: Path) -> None:
    _, endpoint = programs.broker()
    engine = str(pages / "numpy_engine.py")
    worker = programs.worker(endpoint, pages / "numpy_model.py", "--engine", engine)
    assert f"engine {engine}, models from" in worker.output
    processes = set()
    for seed in (0, 5, 0):
        with BirdieZMQ(model_tag="pair", seed=seed, endpoint=endpoint) as lm:
            ((score, _),) = lm.loglikelihood(asked("loglikelihood", PAIRS[:1]), disable_tqdm=True)
            processes.add(lm._description.process_id)
        assert score == pytest.approx(expected_score(*PAIRS[0], seed)[0], abs=1e-4)
    assert len(processes) == 3

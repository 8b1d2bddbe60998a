"""Other weights in a loaded model: the same answers and the same identity as in a new process, without compilation."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import pytest

import birdie_zmq.models
from birdie_zmq.engine.events import Answered
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.errors import ModelLoadError
from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.families.llama import plain_llama
from birdie_zmq.models.tensor_source import WEIGHTS_FILE
from birdie_zmq.models.weights import save_checkpoint
from birdie_zmq.protocol import messages as m
from birdie_zmq.types import GenerateWork, GenerationParams, LogLikelihoodWork, ModelSpec, StepLimits, Work
from birdie_zmq.worker.engine_registry import import_engine
from birdie_zmq.worker.model_loader import load
from birdie_zmq.worker.served_model import ServedModel
from birdie_zmq.worker.weight_swap import DifferentModel, WeightSwap
from tests.models.native.demo_as_maxtext import scaled_demo
from tests.models.native.demo_as_maxtext import write_step as write_maxtext
from tests.models.native.trainers_trees import keras_settings, save_keras

DEMO = Path(birdie_zmq.models.__file__).parent / "demo"


def llama(d_ff: int = 16) -> Architecture:
    return plain_llama(vocab_size=1024, d_model=16, n_layers=2, n_heads=2, n_kv_heads=2, d_ff=d_ff, max_length=256)


MODEL = llama()
# Long enough that the state of the shared prefix is cached.
CONTEXT = "Una lives in Fernley, and Mira has 12 plums. " * 8
WORKS: tuple[Work, ...] = (
    LogLikelihoodWork(pairs=[(CONTEXT + f"Item {i}:", f" {i} plums") for i in range(20)]),
    GenerateWork(
        prompts=[f"{CONTEXT}{name} has" for name in ("Mira", "Una", "Otto", "Ida")],
        settings=GenerationParams(max_gen_toks=8),
    ),
)


def write(folder: Path, seed: int, model: Architecture = MODEL) -> Path:
    save_checkpoint(folder, model, model.init_params(jax.random.key(seed)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("run")
    return [write(folder / f"step_{seed}", seed) for seed in range(2)]


def spec(path: Path) -> ModelSpec:
    return ModelSpec(tag=str(path))


def loaded(path: Path) -> ServedModel:
    config = m.WorkerConfig(engine="jax", swap_weights=True)
    return load(m.StartModel(model=spec(path), start_count=1, config=config), import_engine("jax"))


def swappable(path: Path) -> tuple[ServedModel, WeightSwap]:
    swap = WeightSwap(spec(path), is_enabled=True)
    served = loaded(path)
    swap.loaded()
    return served, swap


def answers(served: ServedModel, work: Work) -> list[Any]:
    found: dict[int, Any] = {}
    for event in served.answer(work, StepLimits()):
        if isinstance(event, Answered):
            found.update(zip(event.indices, event.answers, strict=True))
    return [found[index] for index in range(len(found))]


def test_swapped_weights_answer_as_a_new_process_and_nothing_is_compiled(checkpoints: list[Path]) -> None:
    first, second = checkpoints
    served, swap = swappable(first)
    before = [answers(served, work) for work in WORKS]
    computed = served.evaluator.report
    assert isinstance(served.backend, JaxBackend)
    assert served.backend.cached_prefixes()
    old = weakref.ref(jax.tree.leaves(served.backend._model.params)[0])

    swapped = swap(served, spec(second))

    gc.collect()
    assert old() is None, "the old weights are still in memory"
    assert not swapped.backend.cached_prefixes()
    fresh = loaded(second)
    assert swapped.identity == fresh.identity != served.identity
    assert swapped.describe().model == spec(second)
    after = [answers(swapped, work) for work in WORKS]
    assert after == [answers(fresh, work) for work in WORKS]
    assert after != before
    report = swapped.evaluator.report
    assert report.compile_seconds == 0.0
    assert (report.requests, report.shapes) == (computed.requests, computed.shapes)
    assert swapped.evaluator.computed.executables == 0
    again = swap(swapped, spec(first))
    assert [answers(again, work) for work in WORKS] == before


def test_old_checkpoint_may_be_deleted_before_the_swap(checkpoints: list[Path], tmp_path: Path) -> None:
    served, swap = swappable(shutil.copytree(checkpoints[0], tmp_path / "old"))
    shutil.rmtree(tmp_path / "old")

    assert swap(served, spec(checkpoints[1])).identity == loaded(checkpoints[1]).identity


def compared(path: Path, *, is_enabled: bool = True) -> WeightSwap:
    """Return the swap of a process in which a checkpoint counts as loaded."""
    swap = WeightSwap(spec(path), is_enabled=is_enabled)
    swap.loaded()
    return swap


NOT_READ = cast(ServedModel, None)
"""Stands for the loaded model, which a refusal leaves alone."""


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_another_configuration_or_tokenizer_is_refused_and_nothing_changes(
    checkpoints: list[Path], tmp_path: Path, name: str
) -> None:
    other = shutil.copytree(checkpoints[1], tmp_path / "other")
    values = json.loads((other / name).read_text()) if (other / name).exists() else {}
    (other / name).write_text(json.dumps(values | {"transformers_version": "9"}))

    with pytest.raises(DifferentModel, match="its configuration or its tokenizer differs"):
        compared(checkpoints[0])(NOT_READ, spec(other))


@pytest.mark.parametrize("tag", ["demo", "nowhere/model"])
def test_other_kinds_of_models_are_refused(checkpoints: list[Path], tag: str) -> None:
    with pytest.raises(DifferentModel, match="directories of Hugging Face and of JAX trainers"):
        compared(checkpoints[0])(NOT_READ, ModelSpec(tag=tag))


def write_keras(step: Path, scale: float) -> Path:
    """Write an epoch as Keras's callback does, a file of weights, and the configuration beside it."""
    config, tensors = scaled_demo(scale)
    settings = keras_settings("Llama3Backbone", config, rope_max_wavelength=10_000, tie_word_embeddings=True)
    preset = save_keras(step.parent.parent / f"preset_{step.name}", config, tensors, settings)
    step.parent.mkdir(exist_ok=True)
    shutil.copy(preset / "config.json", step.parent)
    return (preset / "model.weights.h5").rename(step.with_name(f"epoch_{step.name}.weights.h5"))


@pytest.mark.parametrize(
    ("write_step", "settings"),
    [(write_maxtext, "../config.yml"), (write_keras, "config.json")],
    ids=["MaxText", "Keras"],
)
def test_steps_of_a_trainer_replace_each_other_while_its_settings_are_equal(
    tmp_path: Path, write_step: Callable[[Path, float], Path], settings: str
) -> None:
    first, second = (write_step(tmp_path / "run" / "checkpoints" / str(step), 1.0 + step) for step in (1, 2))

    def described(step: Path) -> ModelSpec:
        return ModelSpec(tag=str(step), arguments=json.dumps({"tokenizer": str(DEMO)}))

    swap = WeightSwap(described(first), is_enabled=True)
    config = m.WorkerConfig(engine="jax", swap_weights=True)
    served = load(m.StartModel(model=described(first), start_count=1, config=config), import_engine("jax"))
    swap.loaded()

    swapped = swap(served, described(second))

    fresh = load(m.StartModel(model=described(second), start_count=1, config=config), import_engine("jax"))
    assert swapped.identity == fresh.identity != served.identity
    file = first.parent / settings
    file.write_text(file.read_text() + "\n")
    with pytest.raises(DifferentModel, match="its configuration or its tokenizer differs"):
        swap(swapped, described(first))


def test_a_worker_without_the_option_does_not_swap(checkpoints: list[Path]) -> None:
    with pytest.raises(DifferentModel):
        compared(checkpoints[0], is_enabled=False)(NOT_READ, spec(checkpoints[1]))


def test_weights_of_other_shapes_are_an_error(checkpoints: list[Path], tmp_path: Path) -> None:
    served, swap = swappable(checkpoints[0])
    other = write(tmp_path / "other", 3, llama(d_ff=32))
    shutil.copy(checkpoints[0] / "config.json", other / "config.json")

    with pytest.raises(ModelLoadError, match="shape"):
        swap(served, spec(other))


def test_weights_of_another_dtype_are_an_error(checkpoints: list[Path], tmp_path: Path) -> None:
    for step, dtype in enumerate(("F32", "BF16")):
        folder = shutil.copytree(checkpoints[step], tmp_path / dtype)
        config = json.loads((folder / "config.json").read_text())
        del config["dtype"]
        (folder / "config.json").write_text(json.dumps(config))
    store_in_bfloat16(tmp_path / "BF16" / WEIGHTS_FILE)
    served, swap = swappable(tmp_path / "F32")

    with pytest.raises(ModelLoadError, match="names, shapes or dtypes"):
        swap(served, spec(tmp_path / "BF16"))


def store_in_bfloat16(file: Path) -> None:
    import ml_dtypes
    from safetensors.numpy import load_file, save_file

    save_file({name: values.astype(ml_dtypes.bfloat16) for name, values in load_file(file).items()}, file)

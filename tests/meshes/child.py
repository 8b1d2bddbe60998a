"""Computes the results for test_meshes.py with eight devices: ``python -m tests.meshes.child SUITE DIRECTORY``.

The number of CPU devices is fixed when jax starts, so a process with one device cannot run this. It prints one line of
JSON: for each model and each mesh the answers, and the shardings of weights and states. ``SUITE`` is ``checkpoints``,
``user_modules`` or ``recurrent``.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from birdie_zmq import Model, models
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.jax.executables import Executables
from birdie_zmq.engine.jax.sharding import make_mesh
from birdie_zmq.engine.jax.states import create_state, row_bytes
from birdie_zmq.engine.mesh_shape import MeshShape, parse_mesh
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.planning.steps import Extend, ScorePositions, Step, Tree
from birdie_zmq.errors import UsageError
from birdie_zmq.models import tensor_source, weights
from birdie_zmq.models.config import CONFIG_FILE, complete_config
from birdie_zmq.models.families.llama import plain_llama
from birdie_zmq.models.registry import build_architecture
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.models.native.trainers_trees import maxtext_parameters, maxtext_settings, save_maxtext, scanned

MODEL = plain_llama(
    vocab_size=264, d_model=32, n_layers=2, n_heads=8, n_kv_heads=4, d_ff=48, max_length=128, tied_head=False
)
"""Eight query heads, four key heads and 264 tokens: an axis of four divides everything, one of eight all but the keys."""

PATTERNED = {
    "model_type": "gemma3_text",
    "vocab_size": 264,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "sliding_window": 20,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 8,
}
"""A decoder whose layers are not all equal: three stacks."""

ROUTED = {
    "model_type": "mixtral",
    "vocab_size": 264,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 24,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
}
"""A decoder with experts, whose inner dimension an axis of four divides."""

RECURRENT = {
    "model_type": "falcon_h1",
    "vocab_size": 264,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 24,
    "mamba_d_ssm": 64,
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 6,
    "mamba_rms_norm": True,
    "max_position_embeddings": 128,
}
"""A decoder with a recurrence beside attention, whose heads an axis of four divides."""

BOTH = "data:2/model:4"
MESHES = ("data:8", "model:8", BOTH)

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples" / "models"

SHARED = "The mill of Oldbrook was built of grey stone. "
PAIRS = [(f"{n}. {SHARED}Mill {n}?", f" {name}") for n in range(5) for name in ("Una", "Mira", "Tom")]
TEXTS = [SHARED * 4, SHARED, "Oldbrook"]
GREEDY = {"max_gen_toks": 5, "until": []}
SAMPLED = GREEDY | {"do_sample": True, "temperature": 1.0, "top_p": 0.9}
PENALISED = GREEDY | {
    "repetition_penalty": 1.6,
    "frequency_penalty": 0.5,
    "suppress_tokens": [32, 97],
    "min_new_tokens": 3,
}


def answers(model: Any, mesh: str | None, *, texts: bool = True, **model_args: Any) -> dict[str, Any]:
    """The scores of pairs and of whole texts, and the greedy and sampled texts, of a model that load_model may return."""
    model_args |= {} if mesh is None else {"mesh": mesh}
    with BirdieZMQ(model=model, tokenizer=importlib.import_module("byte_tokenizer").Bytes(), **model_args) as lm:
        pairs = lm.loglikelihood([instance("loglikelihood", pair, 0) for pair in PAIRS], disable_tqdm=True)
        found: dict[str, Any] = {"pairs": [score for score, _ in pairs], "greedy": [greedy for _, greedy in pairs]}
        if texts:
            rolling = [instance("loglikelihood_rolling", (text,), 0) for text in TEXTS]
            found["texts"] = lm.loglikelihood_rolling(rolling, disable_tqdm=True)
            for name, kwargs in (("generated", GREEDY), ("sampled", SAMPLED), ("penalised", PENALISED)):
                prompts = [instance("generate_until", (f"{SHARED * 2}Mill {n}?", dict(kwargs)), 0) for n in range(6)]
                found[name] = lm.generate_until(prompts, disable_tqdm=True)
        found["shapes"] = lm.get_model_info()["model_steps"]["shapes"]
    return found


def answers_on_meshes(load: Callable[[Any], Any], meshes: tuple[str, ...], **options: Any) -> dict[str, Any]:
    """The answers on one device and on each mesh."""
    found = {"one": answers(load(None), None, **options)}
    for mesh in meshes:
        found[mesh] = answers(load(make_mesh(parse_mesh(mesh))), mesh, **options)
    return found


def with_own_score(model: Model) -> Model:
    """The same model with only its own `score`."""

    def score(params: Any, ids: jax.Array, labels: jax.Array, mask: jax.Array) -> Any:
        assert model.logits is not None
        logits = jax.nn.log_softmax(model.logits(params, ids))
        chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        best = logits.argmax(axis=-1) == labels
        return (chosen * mask).sum(axis=1), (best | (mask == 0)).all(axis=1)

    return Model(params=model.params, score=score, vocab_size=264)


def shard_shapes(params: Any) -> dict[str, Any]:
    """The shape of each weight, and the shapes of its shards."""
    return {
        jax.tree_util.keystr(path): [leaf.shape, sorted({shard.data.shape for shard in leaf.addressable_shards})]
        for path, leaf in jax.tree.leaves_with_path(params)
    }


def largest_read(directory: Path, mesh: str) -> dict[str, int]:
    """The maximum number of elements of each tensor that the host read at once while it was sharded."""
    seen: dict[str, int] = {}
    original = tensor_source.SafetensorsDirectory.read

    def recorded(self: Any) -> Iterator[tuple[str, Any]]:
        for name, read_tensor in original(self):

            def record_and_read(index: Any = None, name: str = name, read_tensor: Any = read_tensor) -> NDArray[Any]:
                values: NDArray[Any] = read_tensor(index)
                seen[name] = max(seen.get(name, 0), values.size)
                return values

            yield name, record_and_read

    tensor_source.SafetensorsDirectory.read = recorded  # type: ignore[method-assign]
    try:
        models.load_model(str(directory), mesh=make_mesh(parse_mesh(mesh)))
    finally:
        tensor_source.SafetensorsDirectory.read = original  # type: ignore[method-assign]
    return seen


def states(directory: Path, mesh: str) -> dict[str, Any]:
    """The sharding of a state of eight rows, and the bytes of a row per device, with and without a mesh."""
    device_mesh = make_mesh(parse_mesh(mesh))
    backend = JaxBackend(resolve(models.load_model(str(directory), mesh=device_mesh)), 128, device_mesh)
    unsharded = JaxBackend(resolve(models.load_model(str(directory))), 128)
    keys = create_state(backend._model, 8, 256).caches[0].keys
    return {
        "shape": keys.shape,
        "shard": keys.addressable_shards[0].data.shape,
        "row_bytes": row_bytes(backend._model, 256),
        "row_bytes_unsharded": row_bytes(unsharded._model, 256),
    }


def behind_a_state(directory: Path, mesh: str | None) -> list[float]:
    """Log-probabilities of tree rows behind a state, with more queries than attend to a state at once."""
    device_mesh = None if mesh is None else make_mesh(parse_mesh(mesh))
    backend = JaxBackend(resolve(models.load_model(str(directory), mesh=device_mesh)), 1024, device_mesh)
    random = np.random.default_rng(0)
    before, rows = random.integers(1, 264, (1, 64), np.int32), random.integers(1, 264, (4, 192), np.int32)
    name = before.tobytes()
    depths = np.tile(np.arange(192, dtype=np.int32), (4, 1))
    ends = np.full_like(depths, 192)
    ends[:, 64:128], depths[:, 128:] = 128, depths[:, 128:] - 64  # two branches after the first 64 tokens
    targets = ScorePositions()
    for row in range(4):
        targets.add(row, range(191), rows[row, 1:], row)
    steps = [
        Step.of(before, 64, Extend(np.array([64], np.int32), b"", name, 64), ScorePositions()),
        Step.of(rows, rows.size, Tree(depths, ends, name), targets),
    ]
    backend.start_plan(steps)
    logprobs: list[float] = [backend.submit(step).result() for step in steps][-1].logprobs.tolist()
    return logprobs


_gathered: dict[str, dict[str, int]] = {}
"""For each mesh and kind of executable, the maximum number of sharded elements that it gathers from several devices."""


def record_gathers() -> None:
    """Record the gathers of all executables that are compiled from now on."""
    original = Executables.get

    def get(self: Executables, key: Any, function: Any, *arguments: Any, donated: int | None = None) -> Any:
        executable: Any = original(self, key, function, *arguments, donated=donated)
        if self.sharding.mesh is not None:
            shapes = re.findall(r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-to-all)\(", executable.as_text())
            sizes = [math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes]
            of_mesh = _gathered.setdefault(str(MeshShape(**self.sharding.mesh.shape)), {})
            of_mesh[key[0]] = max([of_mesh.get(key[0], 0), *sizes])
        return executable

    Executables.get = get  # type: ignore[method-assign]


def error_message(load: Callable[[], Any]) -> str:
    """The message of the UsageError that a call raises."""
    try:
        load()
    except UsageError as error:
        return error.message
    return "no error"


def write_random(directory: Path, config: dict[str, Any]) -> Path:
    """Write a checkpoint of a decoder with random weights."""
    directory.mkdir()
    (directory / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    architecture = build_architecture(complete_config(config), CONFIG_FILE)
    tensors = weights.stored_tensors(architecture.weight_map(), architecture.init_params(jax.random.key(1)))
    save_file(tensors, directory / tensor_source.WEIGHTS_FILE)
    return directory


def native_weights(directory: Path, mesh: str) -> dict[str, Any]:
    """The shards of a checkpoint of MaxText, and the largest difference of its weights from those on one device."""
    config = json.loads((directory / CONFIG_FILE).read_text("utf-8"))
    stored = maxtext_parameters(config, load_file(directory / tensor_source.WEIGHTS_FILE), "llama2")
    step = save_maxtext(
        directory / "run", maxtext_settings(config, "llama2"), scanned(stored, config["num_hidden_layers"])
    )
    one = models.load_model(str(step)).params
    sharded = models.load_model(str(step), mesh=make_mesh(parse_mesh(mesh))).params
    differences = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), one, sharded)
    return {"shards": shard_shapes(sharded), "difference": max(jax.tree.leaves(differences))}


def checkpoint_results(directory: Path) -> dict[str, Any]:
    """The results for a built-in model."""
    weights.save_checkpoint(directory, MODEL, MODEL.init_params(jax.random.key(0)))
    of_config = {"patterned": PATTERNED, "routed": ROUTED}
    directories = {name: write_random(directory / name, config) for name, config in of_config.items()}

    def llama(mesh: Any) -> Model:
        return models.load_model(str(directory), **({} if mesh is None else {"mesh": mesh}))

    def other(name: str) -> Callable[[Any], Model]:
        return lambda mesh: models.load_model(str(directories[name]), **({} if mesh is None else {"mesh": mesh}))

    record_gathers()
    return {
        "answers": {
            "llama": answers_on_meshes(llama, MESHES),
            "patterned": answers_on_meshes(other("patterned"), (BOTH,)),
            "routed": answers_on_meshes(other("routed"), (BOTH,), texts=False),
        },
        "behind_a_state": {mesh or "one": behind_a_state(directory, mesh) for mesh in (None, "data:4", BOTH)},
        "gathered": _gathered,
        "shards": {mesh: shard_shapes(llama(make_mesh(parse_mesh(mesh))).params) for mesh in MESHES},
        "native": native_weights(directory, BOTH),
        "largest_read": largest_read(directory, BOTH),
        "states": {mesh: states(directory, mesh) for mesh in ("model:8", BOTH)},
        "errors": {
            "too many devices": error_message(lambda: make_mesh(parse_mesh("data:3/model:4"))),
            "divides nothing": error_message(lambda: llama(make_mesh(parse_mesh("model:7")))),
        },
    }


def user_module_results(directory: Path) -> dict[str, Any]:
    """The results for models that a user module loads."""
    rnn, sharded = (importlib.import_module(name) for name in ("gated_rnn", "sharded"))
    weights.save_checkpoint(directory, MODEL, MODEL.init_params(jax.random.key(0)))

    def bare(mesh: Any) -> Callable[[Any], Any]:
        logits, params = sharded.load_model("plain", mesh)
        call = jax.jit(logits)
        return lambda tokens: call(params, tokens)

    device_mesh = make_mesh(parse_mesh(BOTH))
    return {
        "answers": {
            "rnn": answers_on_meshes(lambda mesh: rnn.load_model("rnn"), (BOTH,), max_length=256),
            "user_module": answers_on_meshes(lambda mesh: sharded.load_model("plain", mesh), (BOTH,), max_length=128),
            "bare": answers_on_meshes(bare, (BOTH,), texts=False, max_length=128),
            "score": answers_on_meshes(
                lambda mesh: with_own_score(models.load_model(str(directory))), (BOTH,), texts=False
            ),
        },
        "forced": answers(sharded.load_model("plain", device_mesh), BOTH, texts=False, max_length=128, batch_rows=3),
        "shards": shard_shapes(sharded.load_model("plain", device_mesh)[1]),
    }


def recurrent_results(directory: Path) -> dict[str, Any]:
    """The results for a built-in model with a recurrence."""
    checkpoint = write_random(directory, RECURRENT)

    def load(mesh: Any) -> Model:
        return models.load_model(str(checkpoint), **({} if mesh is None else {"mesh": mesh}))

    return {"answers": {"recurrent": answers_on_meshes(load, MESHES)}}


if __name__ == "__main__":
    sys.path.insert(0, str(EXAMPLES))
    suites = {
        "checkpoints": checkpoint_results,
        "user_modules": user_module_results,
        "recurrent": recurrent_results,
    }
    results = suites[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps(results))  # noqa: T201 -- the test parses it

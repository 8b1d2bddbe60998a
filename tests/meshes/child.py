"""What test_meshes.py looks at, found out in a process that has eight devices: ``python -m tests.meshes.child WHAT FOLDER``.

How many devices a CPU has is settled when jax starts, so a process with one device cannot ask. Prints one line of JSON:
for each model and each mesh what was answered, and where weights and states lay. ``WHAT`` is checkpoints or pages.
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
from lm_eval.api.instance import Instance
from numpy.typing import NDArray

from birdie_zmq import Model, models
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.jax.executables import Executables
from birdie_zmq.engine.jax.sharding import make_mesh
from birdie_zmq.engine.mesh_shape import MeshShape, read_mesh
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.planning.steps import Extend, ScorePositions, Step, Tree
from birdie_zmq.errors import UsageError
from birdie_zmq.models import weights
from birdie_zmq.models.llama import Llama
from harness_model import BirdieZMQ

MODEL = Llama(vocab_size=264, d_model=32, n_layers=2, n_heads=8, n_kv_heads=4, d_ff=48, max_length=128, tied_head=False)
"""Eight query heads, four key heads and 264 tokens: an axis of four divides all of it, one of eight all but the keys."""

BOTH = "data:2/model:4"
MESHES = ("data:8", "model:8", BOTH)

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples" / "models"

SHARED = "The mill of Oldbrook was built of grey stone. "
PAIRS = [(f"{n}. {SHARED}Mill {n}?", f" {name}") for n in range(5) for name in ("Una", "Mira", "Tom")]
TEXTS = [SHARED * 4, SHARED, "Oldbrook"]
GREEDY = {"max_gen_toks": 5, "until": []}
DRAWN = GREEDY | {"do_sample": True, "temperature": 1.0, "top_p": 0.9}


def answers(model: Any, mesh: str | None, *, texts: bool = True, **words: Any) -> dict[str, Any]:
    """Scores of pairs and of whole texts, and texts, greedy and drawn, of a model that load_model may return."""
    words |= {} if mesh is None else {"mesh": mesh}
    with BirdieZMQ(model=model, tokenizer=importlib.import_module("byte_tokenizer").Bytes(), **words) as lm:
        pairs = lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in PAIRS], disable_tqdm=True)
        found: dict[str, Any] = {"pairs": [score for score, _ in pairs], "greedy": [greedy for _, greedy in pairs]}
        if texts:
            rolling = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in TEXTS]
            found["texts"] = lm.loglikelihood_rolling(rolling, disable_tqdm=True)
            for name, how in (("continued", GREEDY), ("drawn", DRAWN)):
                prompts = [Instance("generate_until", {}, (f"{SHARED}Mill {n}?", dict(how)), 0) for n in range(6)]
                found[name] = lm.generate_until(prompts, disable_tqdm=True)
        found["shapes"] = lm.get_model_info()["model_steps"]["shapes"]
    return found


def of_meshes(load: Callable[[Any], Any], meshes: tuple[str, ...], **how: Any) -> dict[str, Any]:
    """The answers on one device, and on each mesh."""
    found = {"one": answers(load(None), None, **how)}
    for mesh in meshes:
        found[mesh] = answers(load(make_mesh(read_mesh(mesh))), mesh, **how)
    return found


def as_score(model: Model) -> Model:
    """The same model by its own score alone."""

    def score(params: Any, ids: jax.Array, labels: jax.Array, mask: jax.Array) -> Any:
        assert model.logits is not None
        logits = jax.nn.log_softmax(model.logits(params, ids))
        chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        best = logits.argmax(axis=-1) == labels
        return (chosen * mask).sum(axis=1), (best | (mask == 0)).all(axis=1)

    return Model(params=model.params, score=score, vocab_size=264)


def parts(params: Any) -> dict[str, Any]:
    """Of each weight its shape, and the shapes of what each device has of it."""
    return {
        jax.tree_util.keystr(path): [leaf.shape, sorted({shard.data.shape for shard in leaf.addressable_shards})]
        for path, leaf in jax.tree.leaves_with_path(params)
    }


def largest_read(folder: Path, mesh: str) -> dict[str, int]:
    """The most numbers of each tensor that were in the host's memory at once while it was divided."""
    seen: dict[str, int] = {}
    plain = weights.SafetensorsDirectory.read

    def watched(self: Any) -> Iterator[tuple[str, Any]]:
        for name, take in plain(self):

            def take_and_tell(index: Any = None, name: str = name, take: Any = take) -> NDArray[Any]:
                values: NDArray[Any] = take(index)
                seen[name] = max(seen.get(name, 0), values.size)
                return values

            yield name, take_and_tell

    weights.SafetensorsDirectory.read = watched  # type: ignore[method-assign]
    try:
        models.load_model(str(folder), mesh=make_mesh(read_mesh(mesh)))
    finally:
        weights.SafetensorsDirectory.read = plain  # type: ignore[method-assign]
    return seen


def states(folder: Path, mesh: str) -> dict[str, Any]:
    """How a state of eight rows lies, and what a row of it takes of a device, here and without a mesh."""
    spread = make_mesh(read_mesh(mesh))
    backend = JaxBackend(resolve(models.load_model(str(folder), mesh=spread)), 128, spread)
    alone = JaxBackend(resolve(models.load_model(str(folder))), 128)
    keys = backend._new_state(8, 256).state.keys
    return {
        "shape": keys.shape,
        "part": keys.addressable_shards[0].data.shape,
        "row_bytes": backend._row_bytes(256),
        "row_bytes_alone": alone._row_bytes(256),
    }


def behind_a_state(folder: Path, mesh: str | None) -> list[float]:
    """Log-probabilities in rows of trees behind a state, of more queries than read a state at once."""
    spread = None if mesh is None else make_mesh(read_mesh(mesh))
    backend = JaxBackend(resolve(models.load_model(str(folder), mesh=spread)), 1024, spread)
    random = np.random.default_rng(0)
    before, rows = random.integers(1, 264, (1, 64), np.int32), random.integers(1, 264, (4, 192), np.int32)
    name = before.tobytes()
    depths = np.tile(np.arange(192, dtype=np.int32), (4, 1))
    ends = np.full_like(depths, 192)
    ends[:, 64:128], depths[:, 128:] = 128, depths[:, 128:] - 64  # two branches behind the first 64 tokens
    places = ScorePositions()
    for row in range(4):
        places.add(row, np.arange(191), rows[row, 1:], row)
    steps = [
        Step.of(before, 64, Extend(np.array([64], np.int32), b"", name, 64), ScorePositions()),
        Step.of(rows, rows.size, Tree(depths, ends, name), places),
    ]
    backend.open(steps)
    logprobs: list[float] = [backend.submit(step).result() for step in steps][-1].logprobs.tolist()
    return logprobs


_gathered: dict[str, dict[str, int]] = {}
"""For each mesh the most numbers that programs of each kind bring together from several devices, of what was divided."""


def watch_programs() -> None:
    """Look into what is compiled from now on."""
    plain = Executables.get

    def get(self: Executables, key: Any, function: Any, *arguments: Any, donated: int | None = None) -> Any:
        program: Any = plain(self, key, function, *arguments, donated=donated)
        if self.placement.mesh is not None:
            shapes = re.findall(r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-to-all)\(", program.as_text())
            sizes = [math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes]
            of_mesh = _gathered.setdefault(str(MeshShape(**self.placement.mesh.shape)), {})
            of_mesh[key[0]] = max([of_mesh.get(key[0], 0), *sizes])
        return program

    Executables.get = get  # type: ignore[method-assign]


def refusal(load: Callable[[], Any]) -> str:
    """What is said of what cannot be done."""
    try:
        load()
    except UsageError as error:
        return error.message
    return "nothing"


def of_checkpoints(folder: Path) -> dict[str, Any]:
    """All that is looked at of a built-in model."""
    weights.save_checkpoint(folder, MODEL, MODEL.init_params(jax.random.key(0)))

    def llama(mesh: Any) -> Model:
        return models.load_model(str(folder), **({} if mesh is None else {"mesh": mesh}))

    watch_programs()
    return {
        "answers": {"llama": of_meshes(llama, MESHES)},
        "behind": {mesh or "one": behind_a_state(folder, mesh) for mesh in (None, "data:4", BOTH)},
        "gathered": _gathered,
        "parts": {mesh: parts(llama(make_mesh(read_mesh(mesh))).params) for mesh in MESHES},
        "largest_read": largest_read(folder, BOTH),
        "states": {mesh: states(folder, mesh) for mesh in ("model:8", BOTH)},
        "refusals": {
            "too many": refusal(lambda: make_mesh(read_mesh("data:3/model:4"))),
            "divides nothing": refusal(lambda: llama(make_mesh(read_mesh("model:7")))),
        },
    }


def of_pages(folder: Path) -> dict[str, Any]:
    """All that is looked at of models that a page loads."""
    rnn, sharded = (importlib.import_module(name) for name in ("gated_rnn", "sharded"))
    weights.save_checkpoint(folder, MODEL, MODEL.init_params(jax.random.key(0)))

    def bare(mesh: Any) -> Callable[[Any], Any]:
        logits, params = sharded.load_model("plain", mesh)
        call = jax.jit(logits)
        return lambda tokens: call(params, tokens)

    spread = make_mesh(read_mesh(BOTH))
    return {
        "answers": {
            "rnn": of_meshes(lambda mesh: rnn.load_model("rnn"), (BOTH,), max_length=256),
            "page": of_meshes(lambda mesh: sharded.load_model("plain", mesh), (BOTH,), max_length=128),
            "bare": of_meshes(bare, (BOTH,), texts=False, max_length=128),
            "score": of_meshes(lambda mesh: as_score(models.load_model(str(folder))), (BOTH,), texts=False),
        },
        "forced": answers(sharded.load_model("plain", spread), BOTH, texts=False, max_length=128, batch_rows=3),
        "parts": parts(sharded.load_model("plain", spread)[1]),
    }


if __name__ == "__main__":
    sys.path.insert(0, str(EXAMPLES))
    found = {"checkpoints": of_checkpoints, "pages": of_pages}[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps(found))  # noqa: T201 -- what the test reads

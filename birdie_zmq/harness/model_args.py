"""lm_eval's ``--model_args`` and its own keywords, told apart.

Some words say where and how to run, and are used here; everything else reaches ``load_model`` and ``load_tokenizer``,
and is part of what model this is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from birdie_zmq.engine.mesh_shape import WORD, MeshShape, take_mesh
from birdie_zmq.errors import UsageError
from birdie_zmq.types import ModelSpec, StepLimits
from birdie_zmq.worker.engine_registry import DEFAULT, find_engine

DEFAULT_MAX_GEN_TOKS = 256
"""lm_eval's own default."""


@dataclass(frozen=True)
class ModelArg:
    """A word of model_args that has a meaning here.

    Attributes:
        name: The word.
        meaning: What it says, in the Markdown of docs/reference/options.md.
        passed_on: Whether it reaches ``load_model`` and ``load_tokenizer`` as well, and is part of what model this is.
    """

    name: str
    meaning: str
    passed_on: bool = False


MODEL_ARGS = (
    ModelArg(
        "model_tag",
        "which model: `demo`, a checkpoint, or whatever the page knows; reaches both functions as `model_tag`",
    ),
    ModelArg("pretrained", "another name for `model_tag`; with it, lm_eval names its results folder after the model"),
    ModelArg(
        "endpoint", "a broker that runs already, as `tcp://host:port` or `ipc:///path`; without, the run starts its own"
    ),
    ModelArg("port", "the same, for a broker at this port of this machine"),
    ModelArg("key_file", "the private key file of this client, for a broker with keys"),
    ModelArg("api", "the page for a run's own worker; left out, the built-in one: `./api.py` is never run unasked"),
    ModelArg("engine", "what computes in a run's own worker: `jax`, `torch`, or the file of an engine"),
    ModelArg("status_port", "a status page of a run's own broker, on this port of this machine; 0 takes a free one"),
    ModelArg("resume", "a file in which every answer is kept as it comes; what it holds is not asked again"),
    ModelArg("batch_rows", "the rows of a step, exactly"),
    ModelArg(
        "mesh",
        "`data:2/model:4`: rows dealt out to 2 groups of devices, weights divided among the 4 of each; reaches `load_model` "
        "as a `jax.sharding.Mesh`",
        passed_on=True,
    ),
    ModelArg("max_length", "the most tokens that the model reads at once", passed_on=True),
    ModelArg("prefix_token_id", "the token before a text without context; left out, BOS, else EOS", passed_on=True),
    ModelArg(
        "add_bos_token", "whether texts are encoded behind BOS; left out, as the tokenizer does it", passed_on=True
    ),
    ModelArg(
        "chat_template_args", "an object of variables for the chat template; needs model_args in JSON", passed_on=True
    ),
    ModelArg("enable_thinking", "one of those variables; True needs `think_end_token`", passed_on=True),
    ModelArg(
        "think_end_token",
        "the text or token that ends a model's thoughts, which are no part of its answer",
        passed_on=True,
    ),
    ModelArg(
        "max_gen_toks",
        f"how many tokens are generated where a task does not say; left out, {DEFAULT_MAX_GEN_TOKS}",
        passed_on=True,
    ),
    ModelArg("seed", "what drawn answers depend on; left out, 0", passed_on=True),
)
"""Every word that has a meaning here, whatever the page; docs/reference/options.md is made from it."""

_KEPT = tuple(word.name for word in MODEL_ARGS if not word.passed_on)


@dataclass(frozen=True)
class RunArguments:
    """What a run was asked for.

    Attributes:
        model: The tag and the keywords for ``api.py``.
        endpoint: The broker's, or None for a broker and worker of the run's own.
        key_file: The private key file that a client of this broker was given, None for a broker without keys.
        api: The page for a run's own worker, None for the built-in one.
        engine: What computes in a run's own worker, as `birdie_zmq.worker.engine_registry.find_engine` gives it.
        status_port: The port of a status page of a run's own broker, None for no page.
        resume: The journal in which answers are kept and looked up, None to keep none.
        device: What lm_eval calls the device.
        mesh: Over which devices the model is spread, None for one device. It is a part of `model` too.
        limits: What was said of the rows of a step.
        max_gen_toks: How much is generated where a task does not say.
        seed: What answers that are sampled depend on.
        template_args: Variables for the chat template.
        thinks: Whether the model was told to think before it answers.
        think_end_token: What ends its thoughts, as text or as a token.
    """

    model: ModelSpec
    endpoint: str | None
    key_file: Path | None
    api: Path | None
    engine: str
    status_port: int | None
    resume: Path | None
    device: str | None
    mesh: MeshShape | None
    limits: StepLimits
    max_gen_toks: int
    seed: int
    template_args: Mapping[str, Any]
    thinks: bool
    think_end_token: str | int | None


def read_arguments(
    arguments: Mapping[str, Any],
    *,
    batch_size: int | str | None = None,
    max_batch_size: int | None = None,
    device: str | None = None,
) -> RunArguments:
    """Read model_args and lm_eval's keywords.

    Args:
        arguments: model_args, as lm_eval parsed them.
        batch_size: A number above 1 is the most rows of a step; 1, which lm_eval fills in, and ``auto`` say nothing.
        max_batch_size: The most rows of a step.
        device: ``cpu``, ``cuda:N`` or whatever else lm_eval was told.

    Raises:
        UsageError: A word is missing, contradicts another, or has a value that it cannot have.
    """
    rest = dict(arguments)
    kept = {name: rest.pop(name, None) for name in _KEPT}
    tag, pretrained = kept["model_tag"], kept["pretrained"]
    if tag is not None and pretrained is not None and tag != pretrained:
        raise UsageError(f"model_tag={tag} and pretrained={pretrained} in model_args name two models; give one")
    tag = tag if tag is not None else pretrained
    if tag is None or not str(tag):
        raise UsageError("model_args must name a model: model_tag=demo, or whatever your api.py knows")
    endpoint = _endpoint(kept["endpoint"], kept["port"])
    key_file = _file("key_file", kept["key_file"])
    if key_file is not None and endpoint is None:
        raise UsageError(
            "key_file= in model_args is for a broker that endpoint= or port= names; a run's own has no keys"
        )
    api = kept["api"]
    if api is not None and endpoint is not None:
        raise UsageError(
            "api= in model_args is for a run's own worker; a worker at a broker is given its page by its own --api"
        )
    if api is not None and not Path(str(api)).is_file():
        raise UsageError(f"there is no page at {Path(str(api)).absolute()}, which api= in model_args names")
    engine = kept["engine"]
    if engine is not None and endpoint is not None:
        raise UsageError(
            "engine= in model_args is for a run's own worker; a worker at a broker is given its engine by its own --engine"
        )
    status_port = kept["status_port"]
    if status_port is not None and endpoint is not None:
        raise UsageError(
            "status_port= in model_args is for a run's own broker; one that runs already is given its page by --status-port"
        )
    if status_port is not None and not _is_port(status_port, least=0):
        raise UsageError(f"status_port={status_port!r} in model_args is no port; 0 takes a free one")
    resume = _file("resume", kept["resume"])
    mesh = take_mesh(rest)
    if mesh is not None:
        rest[WORD] = mesh.as_argument()
    rows = _count("batch_rows", kept["batch_rows"])
    most = [number for number in (_batch_size(batch_size), _count("max_batch_size", max_batch_size)) if number]
    max_gen_toks = _count("max_gen_toks", rest.get("max_gen_toks"))
    template_args, thinks, think_end_token = _thinking(rest)
    return RunArguments(
        model=ModelSpec(tag=str(tag), arguments=_canonical(rest)),
        endpoint=endpoint,
        key_file=key_file,
        api=None if api is None else Path(str(api)).resolve(),
        engine=find_engine(DEFAULT if engine is None else str(engine)),
        status_port=status_port,
        resume=resume,
        device=device,
        mesh=mesh,
        limits=StepLimits(max_rows=min(most, default=None), rows=rows),
        max_gen_toks=max_gen_toks or DEFAULT_MAX_GEN_TOKS,
        seed=_seed(rest.get("seed")),
        template_args=template_args,
        thinks=thinks,
        think_end_token=think_end_token,
    )


def _endpoint(endpoint: object, port: object) -> str | None:
    if endpoint is not None and port is not None:
        raise UsageError("model_args hold both endpoint= and port=; give one of them")
    if port is not None:
        if not _is_port(port, least=1):
            raise UsageError(f"port={port!r} in model_args is no port")
        return f"tcp://127.0.0.1:{port}"
    return None if endpoint is None else str(endpoint)


def _is_port(value: object, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 65536


def _file(name: str, value: object) -> Path | None:
    if value is None:
        return None
    if isinstance(value, bool) or not str(value):
        raise UsageError(f"{name}={value!r} in model_args must name a file")
    return Path(str(value)).absolute()


def _thinking(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], bool, str | int | None]:
    """What lm_eval's hf backend says by ``chat_template_args``, ``enable_thinking`` and ``think_end_token``."""
    template_args = arguments.get("chat_template_args")
    if template_args is not None and not isinstance(template_args, dict):
        raise UsageError(
            f"chat_template_args={template_args!r} must be an object, which model_args can hold as JSON: "
            '--model_args \'{"model_tag": "…", "chat_template_args": {"enable_thinking": false}}\''
        )
    given = dict(template_args or {})
    thinks = arguments.get("enable_thinking")
    if thinks is not None:
        if not isinstance(thinks, bool):
            raise UsageError(f"enable_thinking={thinks!r} must be True, False or left out")
        given["enable_thinking"] = thinks
    end = arguments.get("think_end_token")
    if end is not None and (
        isinstance(end, bool) or not isinstance(end, str | int) or end == "" or (isinstance(end, int) and end < 0)
    ):
        raise UsageError(f"think_end_token={end!r} must be a text or the number of a token")
    if isinstance(end, str) and end.isdecimal():
        end = int(end)
    if thinks and end is None:
        raise UsageError(
            "enable_thinking=True needs think_end_token in model_args, the text or token that ends the thoughts (such "
            "as think_end_token=</think>): without it they would be scored as the answer"
        )
    return given, bool(thinks), end


def _batch_size(value: int | str | None) -> int | None:
    if value is None or str(value).startswith("auto"):
        return None
    try:
        number = int(value)
    except ValueError:
        raise UsageError(f"batch_size {value!r} must be a number or auto") from None
    if number < 1:
        raise UsageError(f"batch_size {value!r} must be at least 1")
    return number if number > 1 else None


def _count(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name}={value!r} must be a whole number above 0")
    return value


def _seed(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"seed={value!r} in model_args must be a whole number")
    return value


def _canonical(arguments: Mapping[str, Any]) -> str:
    """One text for equal arguments, so that they name one model."""
    try:
        return json.dumps(arguments, sort_keys=True, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"model_args travel to the worker as JSON, and these do not: {error}") from error

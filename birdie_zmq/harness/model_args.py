"""Parses lm_eval's ``--model_args`` and its own keywords.

Run arguments configure where and how the run executes and are consumed here. All other arguments are forwarded to
``load_model`` and ``load_tokenizer`` and are part of the model's identity. The request arguments among them also concern
the run only: a worker with the built-in models does not load a model again for another value of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from birdie_zmq.engine.mesh_shape import MESH_ARGUMENT, MeshShape, mesh_of_sizes, pop_mesh
from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.security.key_files import ALLOW_GROUP
from birdie_zmq.types import REQUEST_ARGUMENTS, ModelSpec, StepLimits
from birdie_zmq.worker.engine_registry import DEFAULT, find_engine

DEFAULT_MAX_GEN_TOKS = 256
"""The default of lm_eval."""


@dataclass(frozen=True)
class ModelArg:
    """An argument of ``--model_args`` that birdie-zmq interprets.

    Attributes:
        name: The key.
        help: Its meaning, in the Markdown of docs/reference/options.md.
        forwarded: Whether ``load_model`` and ``load_tokenizer`` receive it too, and whether it is part of the model's
            identity.
    """

    name: str
    help: str
    forwarded: bool = False


MODEL_ARGS = (
    ModelArg(
        "model_tag",
        "the model: `demo`, a checkpoint, or any tag that your `api.py` knows; both functions receive it as `model_tag`",
    ),
    ModelArg("pretrained", "alias of `model_tag`; with it, lm_eval names its results folder after the model"),
    ModelArg(
        "endpoint",
        "a running broker, as `tcp://host:port` or `ipc:///path`; default: the run starts an embedded broker and worker",
    ),
    ModelArg("port", "a running broker at this port of localhost"),
    ModelArg("key_file", "private key file of this client, for a broker with keys"),
    ModelArg(ALLOW_GROUP, "whether the group of `key_file` may read it, as with a mounted secret; default: False"),
    ModelArg(
        "api",
        "the `api.py` of the embedded worker; default: the built-in one, since `./api.py` is never run implicitly",
    ),
    ModelArg("engine", "engine of the embedded worker: `jax`, `torch`, or the path of an engine's Python file"),
    ModelArg("status_port", "status page of the embedded broker at this port of localhost; 0: any free port"),
    ModelArg(
        "resume", "journal file that stores each answer when it arrives; requests that it answers are not computed"
    ),
    ModelArg("batch_rows", "exact number of rows per step"),
    ModelArg(
        "mesh",
        "`data:2/model:4`: rows are sharded over 2 groups of devices, weights over the 4 devices of each group; "
        "`load_model` receives a `jax.sharding.Mesh`",
        forwarded=True,
    ),
    ModelArg("max_length", "maximum number of tokens in one forward pass", forwarded=True),
    ModelArg(
        "prefix_token_id", "token before a text that has no context; default: BOS, or EOS without BOS", forwarded=True
    ),
    ModelArg(
        "add_bos_token", "whether to encode texts with a leading BOS; default: as the tokenizer does", forwarded=True
    ),
    ModelArg(
        "chat_template_args", "variables of the chat template, as an object; needs model_args in JSON", forwarded=True
    ),
    ModelArg(
        "enable_thinking",
        "the variable `enable_thinking` of the chat template; True needs `think_end_token`",
        forwarded=True,
    ),
    ModelArg(
        "think_end_token",
        "text or token id that ends the model's reasoning, which is removed from the answer",
        forwarded=True,
    ),
    ModelArg(
        "max_gen_toks",
        f"maximum number of generated tokens for tasks that do not set it; default: {DEFAULT_MAX_GEN_TOKS}",
        forwarded=True,
    ),
    ModelArg("seed", "seed of sampled answers; default: 0", forwarded=True),
)
"""All arguments that birdie-zmq interprets, with any ``api.py``; docs/reference/options.md is generated from them."""

_RUN_ARGS = tuple(arg.name for arg in MODEL_ARGS if not arg.forwarded)


_EMBEDDED_ARGS = {
    "api": "worker; a worker of a running broker gets its api.py from its own --api",
    "engine": "worker; a worker of a running broker gets its engine from its own --engine",
    "status_port": "broker; a running broker gets its status page from its own --status-port",
}
"""Arguments that a run with a running broker cannot have, with the process that they are for."""


@dataclass(frozen=True)
class RunArguments:
    """The parsed arguments of a run.

    Attributes:
        model: The model tag, and the arguments that are forwarded to the user module.
        model_args: The same arguments by name, in alphabetical order.
        endpoint: Endpoint of a running broker, None for an embedded broker and worker.
        key_file: Private key file of this client, None for a broker without keys.
        allow_group_readable_keys: Whether the group of the key file may read it.
        api: The user module of the embedded worker, None for the built-in one.
        engine: Engine of the embedded worker, as `birdie_zmq.worker.engine_registry.find_engine` returns it.
        status_port: Port of the embedded broker's status page, None for no page.
        resume: The journal that stores answers and is searched for them, None for no journal.
        device: The device as lm_eval names it.
        mesh: The device mesh that the model is sharded over, None for one device. It is part of `model` too.
        limits: Limits of the rows per step.
        max_gen_toks: Maximum number of generated tokens for tasks that do not set it.
        seed: Seed of sampled answers.
        template_args: Variables of the chat template.
        enable_thinking: Whether the model reasons before it answers.
        think_end_token: End of its reasoning, as text or as a token id.
    """

    model: ModelSpec
    model_args: Mapping[str, Any]
    endpoint: str | None
    key_file: Path | None
    allow_group_readable_keys: bool
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
    enable_thinking: bool
    think_end_token: str | int | None


def parse_model_args(
    arguments: Mapping[str, Any],
    *,
    batch_size: int | str | None = None,
    max_batch_size: int | None = None,
    device: str | None = None,
) -> RunArguments:
    """Parse model_args and lm_eval's keywords.

    Args:
        arguments: model_args, as lm_eval parsed them.
        batch_size: A number above 1 is the maximum number of rows per step; 1 (lm_eval's default) and ``auto`` set no
            limit.
        max_batch_size: Maximum number of rows per step.
        device: ``cpu``, ``cuda:N`` or another value of lm_eval's ``--device``.

    Raises:
        UsageError: An argument is missing, contradicts another, or has an invalid value.
    """
    forwarded = dict(arguments)
    run_args = {name: forwarded.pop(name, None) for name in _RUN_ARGS}
    tag = _parse_tag(run_args["model_tag"], run_args["pretrained"])
    endpoint = _parse_endpoint(run_args["endpoint"], run_args["port"])
    _check_broker_args(run_args, endpoint)
    mesh = pop_mesh(forwarded)
    if mesh is not None:
        forwarded[MESH_ARGUMENT] = mesh.as_argument()
    elif run_args["api"] is None:
        mesh = mesh_of_sizes(forwarded)
    template_args, enable_thinking, think_end_token = _parse_chat_args(forwarded)
    return RunArguments(
        model=_model_spec(tag, forwarded),
        model_args=dict(sorted(forwarded.items())),
        endpoint=endpoint,
        key_file=_parse_path("key_file", run_args["key_file"]),
        allow_group_readable_keys=_parse_allow_group(run_args[ALLOW_GROUP]),
        api=_parse_api(run_args["api"]),
        engine=find_engine(DEFAULT if run_args["engine"] is None else str(run_args["engine"])),
        status_port=_parse_status_port(run_args["status_port"]),
        resume=_parse_path("resume", run_args["resume"]),
        device=device,
        mesh=mesh,
        limits=_parse_limits(run_args["batch_rows"], batch_size, max_batch_size),
        max_gen_toks=_parse_count("max_gen_toks", forwarded.get("max_gen_toks")) or DEFAULT_MAX_GEN_TOKS,
        seed=_parse_seed(forwarded.get("seed")),
        template_args=template_args,
        enable_thinking=enable_thinking,
        think_end_token=think_end_token,
    )


def in_process_model_args(model: Any, tokenizer: Any, device: str | None, model_args: dict[str, Any]) -> dict[str, Any]:
    """Return the model_args for a model of this process.

    Raises:
        UsageError: The tokenizer is missing, or an argument concerns other processes.
    """
    if isinstance(model, str):
        raise UsageError(f"model= takes a model of this process; to load one with an api.py, pass model_tag={model}")
    if tokenizer is None:
        raise UsageError("model= needs tokenizer=: any value that load_tokenizer of an api.py may return")
    process_args = ("endpoint", "port", "key_file", ALLOW_GROUP, "api", "status_port")
    excluded: list[str] = [name for name in process_args if name in model_args]
    excluded += [] if device is None else ["device"]
    if excluded:
        raise UsageError(f"{', '.join(excluded)} cannot be used with model=: the model runs in this process")
    return model_args if {"model_tag", "pretrained"} & model_args.keys() else {"model_tag": "in-process", **model_args}


def _parse_tag(tag: object, pretrained: object) -> str:
    if tag is not None and pretrained is not None and tag != pretrained:
        raise UsageError(f"model_tag={tag} and pretrained={pretrained} in model_args name two models; set only one")
    tag = tag if tag is not None else pretrained
    if tag is None or not str(tag):
        raise UsageError("model_args must name a model: model_tag=demo, or a tag that your api.py knows")
    return str(tag)


def _parse_endpoint(endpoint: object, port: object) -> str | None:
    if endpoint is not None and port is not None:
        raise UsageError("model_args contain both endpoint= and port=; set only one")
    if port is not None:
        if not _is_port(port, minimum=1):
            raise UsageError(f"port={port!r} in model_args is not a port")
        return f"tcp://127.0.0.1:{port}"
    return None if endpoint is None else str(endpoint)


def _check_broker_args(run_args: Mapping[str, Any], endpoint: str | None) -> None:
    """Reject arguments of the embedded broker and worker with a running broker, and a key without one."""
    if endpoint is None:
        if run_args["key_file"] is not None:
            raise UsageError(
                "key_file= in model_args needs endpoint= or port=; the embedded broker of a run has no keys"
            )
        return
    for name, reason in _EMBEDDED_ARGS.items():
        if run_args[name] is not None:
            raise UsageError(f"{name}= in model_args is for the embedded {reason}")


def _is_port(value: object, *, minimum: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value < 65536


def _parse_path(name: str, value: object) -> Path | None:
    if value is None:
        return None
    if isinstance(value, bool) or not str(value):
        raise UsageError(f"{name}={value!r} in model_args must name a file")
    return Path(str(value)).absolute()


def _parse_allow_group(value: object) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise UsageError(f"{ALLOW_GROUP}={value!r} in model_args must be True or False")


def _parse_api(value: object) -> Path | None:
    if value is None:
        return None
    path = Path(str(value))
    if not path.is_file():
        raise UsageError(f"there is no file {path.absolute()}, which api= in model_args names")
    return path.resolve()


def _parse_status_port(value: object) -> int | None:
    if value is None or _is_port(value, minimum=0):
        return value
    raise UsageError(f"status_port={value!r} in model_args is not a port; 0 selects a free port")


def _parse_chat_args(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], bool, str | int | None]:
    """Parse ``chat_template_args``, ``enable_thinking`` and ``think_end_token``, as lm_eval's hf backend has them."""
    template_args = arguments.get("chat_template_args")
    if template_args is not None and not isinstance(template_args, dict):
        raise UsageError(
            f"chat_template_args={template_args!r} must be an object; write model_args as JSON: "
            '--model_args \'{"model_tag": "…", "chat_template_args": {"enable_thinking": false}}\''
        )
    variables = dict(template_args or {})
    enable_thinking = arguments.get("enable_thinking")
    if enable_thinking is not None:
        if not isinstance(enable_thinking, bool):
            raise UsageError(f"enable_thinking={enable_thinking!r} must be True, False or left out")
        variables["enable_thinking"] = enable_thinking
    end = arguments.get("think_end_token")
    if end is not None and (
        isinstance(end, bool) or not isinstance(end, str | int) or end == "" or (isinstance(end, int) and end < 0)
    ):
        raise UsageError(f"think_end_token={end!r} must be a text or a token id")
    if isinstance(end, str) and end.isdecimal():
        end = int(end)
    if enable_thinking and end is None:
        raise UsageError(
            "enable_thinking=True needs think_end_token in model_args, the text or token id that ends the reasoning (such "
            "as think_end_token=</think>); without it the reasoning would be scored as part of the answer"
        )
    return variables, bool(enable_thinking), end


def _parse_limits(rows: object, batch_size: int | str | None, max_batch_size: object) -> StepLimits:
    maxima = (_parse_batch_size(batch_size), _parse_count("max_batch_size", max_batch_size))
    max_rows = min((maximum for maximum in maxima if maximum), default=None)
    return StepLimits(max_rows=max_rows, rows=_parse_count("batch_rows", rows))


def _parse_batch_size(value: int | str | None) -> int | None:
    if value is None or str(value).startswith("auto"):
        return None
    try:
        number = int(value)
    except ValueError:
        raise UsageError(f"batch_size {value!r} must be a number or auto") from None
    if number < 1:
        raise UsageError(f"batch_size {value!r} must be at least 1")
    return number if number > 1 else None


def _parse_count(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name}={value!r} must be an integer above 0")
    return value


def _parse_seed(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"seed={value!r} in model_args must be an integer")
    return value


def _model_spec(tag: str, forwarded: Mapping[str, Any]) -> ModelSpec:
    return ModelSpec(
        tag=tag,
        arguments=canonical_json({name: value for name, value in forwarded.items() if name not in REQUEST_ARGUMENTS}),
        request_arguments=tuple(
            (name, canonical_json(forwarded[name])) for name in sorted(REQUEST_ARGUMENTS) if name in forwarded
        ),
    )


def canonical_json(value: Any) -> str:
    """Return the same JSON for equal arguments, so that they identify the same model.

    Raises:
        UsageError: A value has no JSON.
    """
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"model_args are sent to the worker as JSON and cannot be encoded: {error}") from error

"""Loading a model: from its spec to an evaluator, and the description of the model that results record."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from birdie_zmq._version import __version__
from birdie_zmq.engine.backend import Backend
from birdie_zmq.engine.distributed import calls
from birdie_zmq.engine.distributed.leader import BroadcastingBackend, Leader, check_mesh
from birdie_zmq.engine.distributed.process_group import RankInfo
from birdie_zmq.engine.evaluator import Evaluator, Listener
from birdie_zmq.engine.mesh_shape import pop_mesh
from birdie_zmq.engine.model_api import LoadedModel, resolve
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import ModelChanged, UsageError
from birdie_zmq.protocol import messages as m
from birdie_zmq.types import (
    ChatWork,
    DescribeWork,
    GenerateWork,
    LogLikelihoodWork,
    ModelDescription,
    ModelSpec,
    RollingWork,
    StepLimits,
    Work,
)
from birdie_zmq.worker.engine_registry import Engine
from birdie_zmq.worker.user_module import BUILT_IN, import_user_module

DEFAULT_MAX_LENGTH = 2048
"""lm_eval's own default for a model without a maximum length."""


@dataclass(frozen=True)
class ModelSource:
    """The code that loaded a model: a user module, by its name and the SHA-256 of its source, or the in-process client."""

    name: str
    sha256: str


@dataclass(frozen=True)
class ServedModel:
    """A loaded model with its evaluator, ready to answer.

    Attributes:
        spec: The tag and the model_args.
        start_count: The number of model processes that the agent has started, this one included.
        engine: The engine.
        source: The code that loaded it.
        fingerprint: The fingerprint that the model itself has, such as its checkpoint's; None if it has none.
        tokenizer: The tokenizer.
        backend: The backend that computes.
        evaluator: The evaluator, which answers.
        max_length: The maximum length of a row, in tokens.
        warnings: Warnings about the arguments, for the user.
        provides: The functions that the model provides, by their names in ``Model``.
    """

    spec: ModelSpec
    start_count: int
    engine: Engine
    source: ModelSource
    fingerprint: str | None
    tokenizer: TokenizerAdapter
    backend: Backend
    evaluator: Evaluator
    max_length: int
    warnings: list[str]
    provides: list[str]

    @functools.cached_property
    def identity(self) -> str:
        """A SHA-256 over the tag, its arguments, its source, its fingerprints, and its engine unless that is JAX.

        For a model without a fingerprint, which an ``api.py`` has loaded from files of its own choice, it covers the
        checkpoint beside the tokenizer.
        """
        fingerprint = self.tokenizer.checkpoint_fingerprint if self.fingerprint is None else self.fingerprint
        parts = [self.spec.tag, json.loads(self.spec.arguments), self.source.sha256, self.tokenizer.fingerprint]
        parts += [] if self.engine.identity is None else [self.engine.identity]
        parts += [] if fingerprint is None else [{"fingerprint": fingerprint}]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def check(self, identity: str | None) -> None:
        """Compare this model's identity with the expected one; None expects none.

        Raises:
            ModelChanged: They differ.
        """
        if identity is not None and identity != self.identity:
            raise ModelChanged(
                f"{self.spec} has changed since the run began: a new process has loaded a changed user module "
                f"({self.source.name}) or checkpoint; start the run again"
            )

    def describe(self) -> ModelDescription:
        """Describe the model for the results, with the counters so far."""
        return ModelDescription(
            model=self.spec,
            identity=self.identity,
            api=self.source.name,
            api_sha256=self.source.sha256,
            num_parameters=self.backend.num_parameters,
            dtype=self.backend.dtype,
            vocab_size=self.backend.vocab_size or None,
            max_length=self.max_length,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            engine=self.backend.name,
            devices=self.backend.devices,
            versions={
                "birdie_zmq": __version__,
                "python": platform.python_version(),
                "numpy": np.__version__,
                **self.backend.versions,
            },
            chat=self.tokenizer.chat_templates(),
            report=self.evaluator.report,
            process_id=os.getpid(),
            start_count=self.start_count,
            provides=self.provides,
        )

    def answer(self, work: Work, limits: StepLimits, listener: Listener, encoded: Any = None) -> None:
        """Answer all items of some work.

        Args:
            work: The work.
            limits: The user's limits on the rows of a step.
            listener: Receives the answers.
            encoded: The result of the evaluator's `encode` for this work, if it was called before.

        Raises:
            ItemFailed: One item has no answer; other items may have been answered.
            BirdieError: The model cannot compute.
        """
        match work:
            case LogLikelihoodWork():
                self.evaluator.loglikelihood(work, limits, listener, encoded)
            case RollingWork():
                self.evaluator.rolling(work, limits, listener, encoded)
            case GenerateWork():
                self.evaluator.generate(work, limits, listener)
            case ChatWork():
                self.evaluator.render_chat(work, listener)
            case DescribeWork():
                for text in self.warnings:
                    listener.notice("warning", text)
                listener.answered([0], [self.describe()])


@dataclass(frozen=True)
class ProcessGroup:
    """The process group that holds a model, as rank 0 sees it.

    Attributes:
        leader: Sends to the follower ranks.
        rank: The rank of this process.
        device_count: Returns the number of devices of all ranks; called after the import of the user module, which may
            set it.
        is_runtime_error: Returns whether an error comes from the framework's runtime.
    """

    leader: Leader
    rank: RankInfo
    device_count: Callable[[], int]
    is_runtime_error: Callable[[BaseException], bool]

    def backend(self, engine: Engine, model: LoadedModel, max_length: int, mesh: object) -> Backend:
        """Return a backend that every rank makes, and whose calls the follower ranks repeat."""
        self.leader.send_max_length(max_length)
        backend = engine.make_backend(require_params(model), max_length, mesh)
        self.leader.wait_until_loaded(backend)
        return BroadcastingBackend(backend, self.leader, self.is_runtime_error)


def require_params(model: LoadedModel) -> LoadedModel:
    """Return the model unchanged, after checking that a process group can hold it.

    Raises:
        UsageError: It is a bare callable, which cannot take arrays that span processes.
    """
    if not model.jit:
        raise UsageError(
            "load_model returned a bare callable, but this worker is a process group, which must have the params; return "
            "(apply, params) or a birdie_zmq.Model"
        )
    return model


def load(request: m.LoadModel, engine: Engine, group: ProcessGroup | None = None) -> ServedModel:
    """Load a model with its user module.

    Args:
        request: The model and the path of the user module.
        engine: The engine that makes a backend for it.
        group: The process group that holds it; None for this process alone.

    Raises:
        ModelError: The user module, the tokenizer or the model is at fault.
        UsageError: A model_arg that the engine reads has a wrong value.
    """
    if group is None:
        engine.prepare()
    user_module = import_user_module(request.api)
    if group is not None:
        # All ranks load at the same time. There is no compilation cache: a rank that finds an executable there would not
        # take part in compiling it.
        group.leader.load(
            calls.Load(
                version=__version__, model=request.model, user_module=user_module.name, sha256=user_module.sha256
            )
        )
        shape = pop_mesh(json.loads(request.model.arguments))
        check_mesh(None if shape is None else shape.size, group.device_count(), group.rank)
    mesh = mesh_for(request.model, engine)  # after the import, which may have set the number of devices
    with _collect_warnings() as warnings:
        tokenizer = adapt_tokenizer(request.model, user_module.load_tokenizer(request.model))
        model = user_module.load_model(request.model, mesh)
    source = ModelSource(user_module.name, user_module.sha256)
    served = assemble(request.model, engine, source, tokenizer, model, request.start_count, mesh=mesh, group=group)
    served.warnings.extend(warnings)
    return served


@contextlib.contextmanager
def _collect_warnings() -> Iterator[list[str]]:
    """Collect what the built-in models log as warnings while they load, so that it reaches the user as well."""
    collector = _Collector(logging.WARNING)
    logger = logging.getLogger(BUILT_IN)
    logger.addHandler(collector)
    try:
        yield collector.messages
    finally:
        logger.removeHandler(collector)


class _Collector(logging.Handler):
    """A handler that keeps the text of each record."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def mesh_for(spec: ModelSpec, engine: Engine) -> object:
    """Return the mesh of devices that ``mesh=`` in model_args requests; None without it.

    Raises:
        UsageError: The argument has a wrong value, there are too few devices, or the engine does not support meshes.
    """
    shape = pop_mesh(json.loads(spec.arguments))
    return None if shape is None else engine.make_mesh(shape)


def adapt_tokenizer(spec: ModelSpec, given: object) -> TokenizerAdapter:
    """Adapt the result of a user module's load_tokenizer to the engine.

    Raises:
        TokenizerError: It is not a tokenizer.
        UsageError: A model_arg that controls how texts are encoded has a wrong value.
    """
    arguments: dict[str, Any] = json.loads(spec.arguments)
    return TokenizerAdapter(given, _add_bos(arguments), _integer(arguments, "prefix_token_id", 0))


def assemble(
    spec: ModelSpec,
    engine: Engine,
    source: ModelSource,
    tokenizer: TokenizerAdapter,
    given_model: object,
    start_count: int = 1,
    *,
    mesh: object = None,
    group: ProcessGroup | None = None,
) -> ServedModel:
    """Make an evaluator for a model that is already in memory.

    Args:
        spec: Its tag and the model_args; the engine reads some of them.
        engine: The engine that makes a backend for it.
        source: The code that loaded it.
        tokenizer: Its tokenizer.
        given_model: The model, as a user module's load_model may return it.
        start_count: The number of model processes that the agent has started, this one included.
        mesh: The mesh that `mesh_for` returned.
        group: The process group that holds it; None for this process alone.

    Raises:
        ModelError: The model is at fault.
        UsageError: A model_arg that the engine reads has a wrong value.
    """
    arguments: dict[str, Any] = json.loads(spec.arguments)
    model = resolve(given_model)
    warnings: list[str] = []
    requested = _integer(arguments, "max_length", 1)
    max_length = requested or model.max_length or tokenizer.max_length
    if max_length is None:
        max_length = DEFAULT_MAX_LENGTH
        warnings.append(
            f"neither the model nor its tokenizer has a max_length; using {DEFAULT_MAX_LENGTH} (set max_length=N in "
            "model_args)"
        )
    elif requested and model.max_length and requested > model.max_length:
        warnings.append(f"max_length={requested} exceeds the model's own max_length of {model.max_length} tokens")
    if group is None:
        backend = engine.make_backend(model, max_length, mesh)
    else:
        backend = group.backend(engine, model, max_length, mesh)
    if not backend.vocab_size:
        warnings.append(
            "the model provides only score and has no vocab_size, so a token out of its vocabulary is not detected (set "
            "vocab_size in birdie_zmq.Model)"
        )
    evaluator = Evaluator(tokenizer, backend, max_length)
    return ServedModel(
        spec,
        start_count,
        engine,
        source,
        model.model.fingerprint,
        tokenizer,
        backend,
        evaluator,
        max_length,
        warnings,
        model.provides,
    )


def _integer(arguments: dict[str, Any], name: str, minimum: int) -> int | None:
    value = arguments.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UsageError(f"{name}={value!r} in model_args must be an integer of at least {minimum}")
    return value


def _add_bos(arguments: dict[str, Any]) -> bool | None:
    value = arguments.get("add_bos_token")
    if value is not None and not isinstance(value, bool):
        raise UsageError(f"add_bos_token={value!r} in model_args must be True or False; leave it out for the default")
    return value

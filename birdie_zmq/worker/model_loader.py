"""From a model's spec to an evaluator: the page, the tokenizer, the model, and what results record of them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from birdie_zmq._version import __version__
from birdie_zmq.engine.backend import Backend
from birdie_zmq.engine.distributed import calls
from birdie_zmq.engine.distributed.leader import BroadcastingBackend, Leader, check_mesh
from birdie_zmq.engine.distributed.process_group import RankInfo
from birdie_zmq.engine.evaluator import Evaluator, Listener
from birdie_zmq.engine.mesh_shape import take_mesh
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
from birdie_zmq.worker.user_module import import_user_module

DEFAULT_MAX_LENGTH = 2048
"""lm_eval's own default for a model that names no length."""


@dataclass(frozen=True)
class ModelSource:
    """Who has loaded a model: a page, by its name and the hash of its text, or whatever stands for one."""

    name: str
    sha256: str


@dataclass(frozen=True)
class ServedModel:
    """A model that is ready to answer; ``started`` counts the processes of its agent."""

    spec: ModelSpec
    started: int
    engine: Engine
    origin: ModelSource
    fingerprint: str | None
    tokenizer: TokenizerAdapter
    backend: Backend
    evaluator: Evaluator
    max_length: int
    warnings: list[str]
    gives: list[str]

    @functools.cached_property
    def identity(self) -> str:
        """A SHA-256 over the tag, its arguments, its page, its fingerprints, and any engine but JAX."""
        parts = [self.spec.tag, json.loads(self.spec.arguments), self.origin.sha256, self.tokenizer.fingerprint]
        parts += [] if self.engine.identity is None else [self.engine.identity]
        parts += [] if self.fingerprint is None else [{"fingerprint": self.fingerprint}]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def check(self, identity: str | None) -> None:
        """Hold this model against the identity that somebody expects, if they do.

        Raises:
            ModelChanged: It is another.
        """
        if identity is not None and identity != self.identity:
            raise ModelChanged(
                f"{self.spec} is another model now than when the run began: its page ({self.origin.name}) or its "
                "checkpoint has changed, and was read again by a new process; start the run again"
            )

    def describe(self) -> ModelDescription:
        """The model as results record it, with what has been computed so far."""
        return ModelDescription(
            model=self.spec,
            identity=self.identity,
            api=self.origin.name,
            api_sha256=self.origin.sha256,
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
            start_count=self.started,
            provides=self.gives,
        )

    def answer(self, work: Work, limits: StepLimits, listener: Listener, encoded: Any = None) -> None:
        """Answer all items of some work.

        Args:
            work: The work.
            limits: What the user said of the rows of a step.
            listener: Hears of the answers.
            encoded: What the evaluator's `encode` gave for this work, if it was called before.

        Raises:
            ItemFailed: One of the items has no answer; others may have theirs.
            BirdieError: The model does not compute.
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
                listener.answered([0], self.describe())


@dataclass(frozen=True)
class Group:
    """The group of processes that hold a model together, as the first one has it.

    Attributes:
        leader: Tells the others.
        place: This process's place.
        devices: How many devices all have together; asked for once the page is there.
        is_of_runtime: Whether an error is of the framework's runtime.
    """

    leader: Leader
    place: RankInfo
    devices: Callable[[], int]
    is_of_runtime: Callable[[BaseException], bool]

    def backend(self, engine: Engine, model: LoadedModel, max_length: int, mesh: object) -> Backend:
        """A backend that all make, and that the others follow."""
        self.leader.prepared(max_length)
        backend = engine.make_backend(jitted(model), max_length, mesh)
        self.leader.loaded(backend)
        return BroadcastingBackend(backend, self.leader, self.is_of_runtime)


def jitted(model: LoadedModel) -> LoadedModel:
    """The same model, if a group can hold it.

    Raises:
        UsageError: It is a bare callable, to which arrays of several processes mean nothing.
    """
    if not model.jit:
        raise UsageError(
            "load_model returned a bare callable, and this worker is a group of processes, which need to know the params; "
            "return (apply, params) or a birdie_zmq.Model"
        )
    return model


def load(request: m.LoadModel, engine: Engine, group: Group | None = None) -> ServedModel:
    """Load a model by its page.

    Args:
        request: Which model, by which page.
        engine: What makes a backend of it.
        group: The processes that hold it together with this one.

    Raises:
        ModelError: The page, the tokenizer or the model is at fault.
        UsageError: A model_arg that the engine reads has a wrong value.
    """
    if group is None:
        engine.prepare()
    page = import_user_module(request.api)
    if group is not None:
        # The others load at the same time. Programs are not kept: who finds one does not take part in making it.
        group.leader.load(calls.Load(version=__version__, model=request.model, page=page.name, sha256=page.sha256))
        shape = take_mesh(json.loads(request.model.arguments))
        check_mesh(None if shape is None else shape.size, group.devices(), group.place)
    mesh = mesh_for(request.model, engine)  # once the page is there, which may have said how many devices there are
    tokenizer = text_tokenizer(request.model, page.load_tokenizer(request.model))
    model = page.load_model(request.model, mesh)
    origin = ModelSource(page.name, page.sha256)
    return assemble(request.model, engine, origin, tokenizer, model, request.start_count, mesh=mesh, group=group)


def mesh_for(spec: ModelSpec, engine: Engine) -> object:
    """The devices that model_args ask for by ``mesh=``; None where they do not.

    Raises:
        UsageError: The word has a wrong value, there are too few devices, or the engine knows no meshes.
    """
    shape = take_mesh(json.loads(spec.arguments))
    return None if shape is None else engine.make_mesh(shape)


def text_tokenizer(spec: ModelSpec, given: object) -> TokenizerAdapter:
    """What a page's load_tokenizer may return, as the engine uses it.

    Raises:
        TokenizerError: It is no tokenizer.
        UsageError: A model_arg that says how texts are encoded has a wrong value.
    """
    arguments: dict[str, Any] = json.loads(spec.arguments)
    return TokenizerAdapter(given, _add_bos(arguments), _whole(arguments, "prefix_token_id", 0))


def assemble(
    spec: ModelSpec,
    engine: Engine,
    origin: ModelSource,
    tokenizer: TokenizerAdapter,
    given_model: object,
    started: int = 1,
    *,
    mesh: object = None,
    group: Group | None = None,
) -> ServedModel:
    """Make a model ready that is there already.

    Args:
        spec: Its tag, and the model_args, some of which the engine reads.
        engine: What makes a backend of it.
        origin: Who has loaded it.
        tokenizer: Its tokenizer.
        given_model: What a page's load_model may return.
        started: Which of its agent's processes this is.
        mesh: What `mesh_for` gives.
        group: The processes that hold it together with this one.

    Raises:
        ModelError: The model is at fault.
        UsageError: A model_arg that the engine reads has a wrong value.
    """
    arguments: dict[str, Any] = json.loads(spec.arguments)
    model = resolve(given_model)
    warnings: list[str] = []
    asked = _whole(arguments, "max_length", 1)
    max_length = asked or model.max_length or tokenizer.max_length
    if max_length is None:
        max_length = DEFAULT_MAX_LENGTH
        warnings.append(
            f"neither the model nor its tokenizer names a max_length; {DEFAULT_MAX_LENGTH} is taken "
            "(say max_length=N in model_args)"
        )
    elif asked and model.max_length and asked > model.max_length:
        warnings.append(f"max_length={asked} is over the {model.max_length} tokens that the model names")
    if group is None:
        backend = engine.make_backend(model, max_length, mesh)
    else:
        backend = group.backend(engine, model, max_length, mesh)
    if not backend.vocab_size:
        warnings.append(
            "the model gives score alone and no vocab_size, so a token that it does not know is not noticed (give "
            "vocab_size in birdie_zmq.Model)"
        )
    evaluator = Evaluator(tokenizer, backend, max_length)
    return ServedModel(
        spec,
        started,
        engine,
        origin,
        model.parts.fingerprint,
        tokenizer,
        backend,
        evaluator,
        max_length,
        warnings,
        model.gives,
    )


def _whole(arguments: dict[str, Any], name: str, least: int) -> int | None:
    value = arguments.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name}={value!r} in model_args must be a whole number, {least} or above")
    return value


def _add_bos(arguments: dict[str, Any]) -> bool | None:
    value = arguments.get("add_bos_token")
    if value is not None and not isinstance(value, bool):
        raise UsageError(f"add_bos_token={value!r} in model_args must be True, False or left out")
    return value

"""A loaded model that answers: its identity, and its description that results record."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np

from birdie_zmq._version import __version__
from birdie_zmq.engine.backend import Backend
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.events import Answered, Event, Notice
from birdie_zmq.engine.request_encoding import Encoded
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import InternalError, ModelChanged
from birdie_zmq.types import DescribeWork, ModelDescription, ModelSpec, RequestArgument, StepLimits, Work
from birdie_zmq.worker.engine_registry import Engine
from birdie_zmq.worker.model_arguments import ModelArguments, parse_arguments


@dataclass(frozen=True, kw_only=True)
class ModelOrigin:
    """What a model is loaded from.

    Attributes:
        spec: The tag and the model_args.
        arguments: The parsed model_args.
        engine: The engine.
        api: The code that loads it: the name of the user module, or the in-process client.
        api_sha256: The SHA-256 of the user module's source.
        request_arguments: The request arguments that this code ignores.
        start_count: The number of model processes that the agent has started, this one included.
    """

    spec: ModelSpec
    arguments: ModelArguments
    engine: Engine
    api: str
    api_sha256: str
    request_arguments: frozenset[RequestArgument] = frozenset()
    start_count: int = 1


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A loaded model with its evaluator, ready to answer.

    Attributes:
        origin: What it was loaded from.
        fingerprint: The fingerprint that the model itself has, such as its checkpoint's; None if it has none.
        tokenizer: The tokenizer.
        backend: The backend that computes.
        evaluator: The evaluator, which answers.
        max_length: The maximum length of a row, in tokens.
        warnings: Warnings about the arguments, for the user.
        provides: The functions that the model provides, by their names in ``Model``.
        loader_warnings: Warnings of the built-in models about the checkpoint, for the user.
    """

    origin: ModelOrigin
    fingerprint: str | None
    tokenizer: TokenizerAdapter
    backend: Backend
    evaluator: Evaluator
    max_length: int
    warnings: list[str]
    provides: list[str]
    loader_warnings: tuple[str, ...] = ()

    @functools.cached_property
    def identity(self) -> str:
        """A SHA-256 over the tag, its arguments, its source, its fingerprints, and its engine unless that is JAX.

        For a model without a fingerprint, which an ``api.py`` has loaded from files of its own choice, it covers the
        checkpoint beside the tokenizer.
        """
        origin = self.origin
        fingerprint = self.tokenizer.checkpoint_fingerprint if self.fingerprint is None else self.fingerprint
        parts = [origin.spec.tag, origin.arguments.given, origin.api_sha256, self.tokenizer.fingerprint]
        parts += [] if origin.engine.identity is None else [origin.engine.identity]
        parts += [] if fingerprint is None else [{"fingerprint": fingerprint}]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def for_spec(self, spec: ModelSpec) -> ServedModel:
        """Return this model as it serves a specification with other request arguments: same weights, other identity.

        Raises:
            UsageError: An argument that the engine reads has a wrong value.
            TokenizerError: The tokenizer has no token to use as the prefix token, and the arguments name none.
        """
        origin = self.origin
        if spec == origin.spec:
            return self
        if spec.without(origin.request_arguments) != origin.spec.without(origin.request_arguments):
            raise InternalError(f"the process that has loaded {origin.spec} received requests for {spec}")
        arguments = parse_arguments(spec)
        _ = self.identity  # The fingerprints are those of the files that were loaded, whatever they have become since.
        tokenizer = self.tokenizer.with_prefix_token(arguments.prefix_token_id)
        return replace(
            self,
            origin=replace(origin, spec=spec, arguments=arguments),
            tokenizer=tokenizer,
            evaluator=self.evaluator.with_tokenizer(tokenizer),
        )

    def check(self, identity: str | None) -> None:
        """Compare this model's identity with the expected one; None expects none.

        Raises:
            ModelChanged: They differ.
        """
        if identity is not None and identity != self.identity:
            raise ModelChanged(
                f"{self.origin.spec} has changed since the run began: a new process has loaded a changed user module "
                f"({self.origin.api}) or checkpoint; start the run again"
            )

    def describe(self) -> ModelDescription:
        """Describe the model for the results, with the counters so far."""
        return ModelDescription(
            model=self.origin.spec,
            identity=self.identity,
            api=self.origin.api,
            api_sha256=self.origin.api_sha256,
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
            start_count=self.origin.start_count,
            provides=self.provides,
        )

    def answer(self, work: Work, limits: StepLimits, encoded: Encoded | None = None) -> Generator[Event, None, None]:
        """Answer all items of some work, as `Evaluator.answer`, or describe the model.

        Args:
            work: The work.
            limits: The user's limits on the rows of a step.
            encoded: The result of the evaluator's `encode` for this work, if it was called before.

        Raises:
            ItemFailed: One item has no answer; other items may have been answered.
            BirdieError: The model cannot compute.
        """
        if isinstance(work, DescribeWork):
            for text in (*self.warnings, *self.loader_warnings):
                yield Notice("warning", text)
            yield Answered([0], [self.describe()])
        else:
            yield from self.evaluator.answer(work, limits, encoded)

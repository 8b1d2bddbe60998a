"""From a model's spec to an evaluator: the page, the tokenizer, the model, and what results record of them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from dataclasses import dataclass
from typing import Any

import numpy as np

from birdie_zmq._version import __version__
from birdie_zmq.engine.backend import Backend
from birdie_zmq.engine.contract import resolve
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.tokenizer import TextTokenizer
from birdie_zmq.errors import ModelChanged, UsageError
from birdie_zmq.wire import messages as m
from birdie_zmq.worker.api_page import ApiPage, import_page
from birdie_zmq.worker.engines import Engine

DEFAULT_MAX_LENGTH = 2048
"""lm_eval's own default for a model that names no length."""


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to answer."""

    request: m.LoadModel
    engine: Engine
    page: ApiPage
    tokenizer: TextTokenizer
    backend: Backend
    evaluator: Evaluator
    max_length: int
    warnings: list[str]

    @functools.cached_property
    def identity(self) -> str:
        """A SHA-256 over the tag, its arguments, its page, the fingerprint of its checkpoint, and any engine but JAX."""
        model = self.request.model
        parts = [model.tag, json.loads(model.arguments), self.page.sha256, self.tokenizer.fingerprint]
        parts += [] if self.engine.identity is None else [self.engine.identity]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def check(self, identity: str | None) -> None:
        """Hold this model against the identity that somebody expects, if they do.

        Raises:
            ModelChanged: It is another.
        """
        if identity is not None and identity != self.identity:
            raise ModelChanged(
                f"{self.request.model} is another model now than when the run began: its page ({self.page.name}) or its "
                "checkpoint has changed, and was read again by a new process; start the run again"
            )

    def describe(self) -> m.ModelDescription:
        """The model as results record it, with what has been computed so far."""
        return m.ModelDescription(
            model=self.request.model,
            identity=self.identity,
            api=self.page.name,
            api_sha256=self.page.sha256,
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
            started=self.request.started,
        )


def load(request: m.LoadModel, engine: Engine) -> Loaded:
    """Load a model by its page.

    Args:
        request: Which model, by which page.
        engine: What makes a backend of it.

    Raises:
        ModelError: The page, the tokenizer or the model is at fault.
        UsageError: A model_arg that the engine reads has a wrong value.
    """
    arguments: dict[str, Any] = json.loads(request.model.arguments)
    engine.prepare()
    page = import_page(request.api)
    tokenizer = TextTokenizer(
        page.load_tokenizer(request.model), _add_bos(arguments), _whole(arguments, "prefix_token_id", 0)
    )
    model = resolve(page.load_model(request.model))
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
    backend = engine.make_backend(model, max_length)
    if not backend.vocab_size:
        warnings.append(
            "the model gives score alone and no vocab_size, so a token that it does not know is not noticed (give "
            "vocab_size in birdie_zmq.Model)"
        )
    evaluator = Evaluator(tokenizer, backend, max_length)
    return Loaded(request, engine, page, tokenizer, backend, evaluator, max_length, warnings)


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

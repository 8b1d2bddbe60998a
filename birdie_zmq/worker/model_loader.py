"""Loading a model: from its spec to an evaluator."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace

from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.protocol import messages as m
from birdie_zmq.worker.distributed.process_group import ProcessGroup
from birdie_zmq.worker.engine_registry import Engine
from birdie_zmq.worker.model_arguments import parse_arguments
from birdie_zmq.worker.served_model import ModelOrigin, ServedModel
from birdie_zmq.worker.user_module import BUILT_IN, import_user_module

DEFAULT_MAX_LENGTH = 2048
"""lm_eval's own default for a model without a maximum length."""


def load(start: m.StartModel, engine: Engine, group: ProcessGroup | None = None) -> ServedModel:
    """Load a model with its user module.

    Args:
        start: The model and the path of the user module.
        engine: The engine that makes a backend for it.
        group: The process group that holds it; None for this process alone.

    Raises:
        ModelError: The user module, the tokenizer or the model is at fault.
        UsageError: A model_arg that the engine reads has a wrong value.
    """
    arguments = parse_arguments(start.model, is_built_in=start.config.api is None)
    # A process group has no compilation cache: a rank that finds an executable there would not take part in compiling it.
    if group is None:
        engine.prepare()
    user_module = import_user_module(start.config.api)
    if group is not None:
        group.begin_loading(start.model, user_module, arguments.mesh)
    mesh = engine.make_mesh(arguments.mesh)  # after the import, which may have set the number of devices
    tag, keywords = start.model.tag, arguments.keywords
    with collect_warnings() as warnings:
        given_tokenizer = user_module.load_tokenizer(tag, keywords)
        tokenizer = TokenizerAdapter(given_tokenizer, arguments.add_bos_token, arguments.prefix_token_id)
        model = user_module.load_model(tag, keywords, mesh)
    origin = ModelOrigin(
        spec=start.model,
        arguments=arguments,
        engine=engine,
        api=user_module.name,
        api_sha256=user_module.sha256,
        request_arguments=user_module.request_arguments,
        start_count=start.start_count,
    )
    return replace(assemble(origin, tokenizer, model, mesh, group), loader_warnings=tuple(warnings))


@contextlib.contextmanager
def collect_warnings() -> Iterator[list[str]]:
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


def assemble(
    origin: ModelOrigin,
    tokenizer: TokenizerAdapter,
    given_model: object,
    mesh: object = None,
    group: ProcessGroup | None = None,
) -> ServedModel:
    """Make an evaluator for a model that is already in memory.

    Args:
        origin: What it was loaded from.
        tokenizer: Its tokenizer.
        given_model: The model, as a user module's load_model may return it.
        mesh: The mesh that the engine made for the model's arguments.
        group: The process group that holds it; None for this process alone.

    Raises:
        ModelError: The model is at fault.
    """
    model = resolve(given_model)
    warnings: list[str] = []
    requested = origin.arguments.max_length
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
        backend = origin.engine.make_backend(model, max_length, mesh)
    else:
        backend = group.make_backend(origin.engine, model, max_length, mesh)
    if not backend.vocab_size:
        warnings.append(
            "the model provides only score and has no vocab_size, so a token out of its vocabulary is not detected (set "
            "vocab_size in birdie_zmq.Model)"
        )
    return ServedModel(
        origin=origin,
        fingerprint=model.model.fingerprint,
        tokenizer=tokenizer,
        backend=backend,
        evaluator=Evaluator(tokenizer, backend, max_length),
        max_length=max_length,
        warnings=warnings,
        provides=model.provides,
    )

"""Replaces the weights of a loaded model by those of another checkpoint, in the same process and without compilation.

This is possible if only the weights differ: the arguments, the configuration and the tokenizer must be equal, and the names,
shapes and dtypes of the weights. The result is what a new process would have loaded, with the same identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import BirdieError, ModelLoadError, UsageError
from birdie_zmq.models.fingerprint import Fingerprint
from birdie_zmq.models.swapping import swappable_files
from birdie_zmq.types import ModelSpec
from birdie_zmq.worker.model_arguments import parse_arguments
from birdie_zmq.worker.model_loader import collect_warnings
from birdie_zmq.worker.served_model import ServedModel
from birdie_zmq.worker.user_module import import_user_module


class DifferentModel(Exception):
    """The other model differs in more than its weights; the message says in what."""


@runtime_checkable
class SwapsWeights(Protocol):
    """A backend that can replace its weights."""

    def swap(self, load: Callable[[], Any]) -> None:
        """Drop the weights and use those that `load` returns, as `birdie_zmq.engine.jax.backend.JaxBackend.swap` does."""
        ...


class WeightSwap:
    """Swaps the weights of one model process. Create it before the first model is loaded.

    Args:
        spec: The model that is loaded first.
        is_enabled: Whether the worker allows it: only for the built-in models, in one process.
    """

    def __init__(self, spec: ModelSpec, *, is_enabled: bool) -> None:
        self._pending = _common_files(spec) if is_enabled else None
        self._loaded: str | None = None

    def loaded(self) -> None:
        """Note that the first model is loaded, from the files that were there when this object was created.

        Raises:
            ModelLoadError: A file has changed since.
        """
        self._loaded = None if self._pending is None else self._pending.result()

    def __call__(self, served: ServedModel, spec: ModelSpec) -> ServedModel:
        """Return the model with the weights of another checkpoint; `served` cannot compute any more then.

        Raises:
            DifferentModel: More than the weights differs. `served` is unchanged.
            BirdieError: The checkpoint cannot be loaded. There are no weights any more.
        """
        pending = _common_files(spec)
        if self._loaded is None or pending is None:
            raise DifferentModel("only the weights of directories of Hugging Face and of JAX trainers are swapped")
        if pending.result() != self._loaded:
            raise DifferentModel("its configuration or its tokenizer differs from that of the loaded model")
        if not isinstance(served.backend, SwapsWeights):
            raise DifferentModel(f"the engine {served.backend.name} does not swap weights")
        swapped = _load(served, spec, served.backend)
        pending.result()  # raises if a file has changed since
        return swapped


def _common_files(spec: ModelSpec) -> Fingerprint | None:
    try:
        return swappable_files(spec.tag, parse_arguments(spec, is_built_in=True).keywords)
    except BirdieError:
        return None  # loading the model reports what is wrong


def _load(served: ServedModel, spec: ModelSpec, backend: SwapsWeights) -> ServedModel:
    arguments = parse_arguments(spec, is_built_in=True)
    user_module = import_user_module(None)
    mesh = served.origin.engine.make_mesh(arguments.mesh)
    fingerprints: list[str | None] = []

    def load_params() -> Any:
        model = resolve(user_module.load_model(spec.tag, arguments.keywords, mesh)).model
        fingerprints.append(model.fingerprint)
        return model.params

    with collect_warnings() as warnings:
        given = user_module.load_tokenizer(spec.tag, arguments.keywords)
        tokenizer = TokenizerAdapter(given, arguments.add_bos_token, arguments.prefix_token_id)
        try:
            backend.swap(load_params)
        except UsageError as error:
            raise ModelLoadError(
                f"{spec.tag} has the configuration of the model before, but other weights: {error}"
            ) from error
    return replace(
        served,
        origin=replace(served.origin, spec=spec, arguments=arguments),
        fingerprint=fingerprints[0],
        tokenizer=tokenizer,
        evaluator=served.evaluator.with_new_weights(tokenizer),
        loader_warnings=tuple(warnings),
    )

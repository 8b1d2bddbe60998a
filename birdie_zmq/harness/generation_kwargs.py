"""Parses a task's ``generation_kwargs`` and lm_eval's ``--gen_kwargs`` into generation and sampling parameters."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from lm_eval.models.utils import normalize_gen_kwargs

from birdie_zmq.errors import UnsupportedRequest, UsageError
from birdie_zmq.types import GenerationParams, SamplingParams

logger = logging.getLogger("lm_eval.birdie_zmq")

_PARSED_ELSEWHERE = frozenset({"until", "max_gen_toks", "do_sample"})

_NEUTRAL_VALUES: Mapping[str, object] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "no_repeat_ngram_size": 0,
    "length_penalty": 1,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "penalty_alpha": 0,
}
"""Unsupported options, each with the value that does not change the answer."""

_warned: set[str] = set()


def parse_generation_params(
    gen_kwargs: Mapping[str, Any], max_gen_toks: int, think_end_token: str | int | None
) -> GenerationParams:
    """Parse the ``generation_kwargs`` of a request.

    Args:
        gen_kwargs: The ``generation_kwargs``; they are not modified.
        max_gen_toks: Maximum number of generated tokens if they do not set one.
        think_end_token: End of the model's reasoning, as text or as a token id.

    Raises:
        UnsupportedRequest: As `parse_sampling_params`.
        UsageError: A value is invalid.
    """
    given = copy.deepcopy(dict(gen_kwargs))
    until = given.pop("until", None)
    stops = [until] if isinstance(until, str) else list(until or ())
    if not all(isinstance(stop, str) for stop in stops):
        raise UsageError(f"until={until!r} must be a string or a list of strings")
    normal: dict[str, Any] = dict(normalize_gen_kwargs(given, max_gen_toks))
    return GenerationParams(
        until=tuple(stops),
        max_gen_toks=normal["max_gen_toks"],
        think_end_token=think_end_token,
        sampling=parse_sampling_params(normal),
    )


def parse_sampling_params(normal: Mapping[str, Any]) -> SamplingParams | None:
    """Parse sampling parameters; None for greedy decoding.

    Args:
        normal: ``generation_kwargs`` as lm_eval's ``normalize_gen_kwargs`` returns them.

    Raises:
        UnsupportedRequest: An unsupported option would change the answer, such as beam search.
        UsageError: A value is invalid.
    """
    for name, neutral in _NEUTRAL_VALUES.items():
        value = normal.get(name)
        if value is not None and value != neutral:
            raise UnsupportedRequest(
                f"the task requests {name}={value}, which is not supported; run with --gen_kwargs {name}={neutral} to "
                "turn it off"
            )
    known = {field.name for field in msgspec.structs.fields(SamplingParams)}
    for name in sorted(set(normal) - known - _PARSED_ELSEWHERE - set(_NEUTRAL_VALUES) - _warned):
        _warned.add(name)
        logger.warning("generation_kwargs contain the unknown option %s=%r; it is ignored", name, normal[name])
    if not normal.get("do_sample"):
        return None
    given = {name: normal[name] for name in sorted(known) if normal.get(name) is not None}
    if given.get("top_k") == -1:
        given["top_k"] = 0  # vLLM writes -1 for no limit
    if not float(given.get("temperature") or 0.0):
        return None
    try:
        return msgspec.convert(given, SamplingParams, strict=False)
    except msgspec.ValidationError as error:
        shown = ", ".join(f"{name}={value}" for name, value in given.items())
        raise UsageError(f"invalid sampling parameters {shown}: {error}") from error

"""A task's ``generation_kwargs`` and lm_eval's ``--gen_kwargs``: what they say of how tokens are chosen."""

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

_READ_ELSEWHERE = frozenset({"until", "max_gen_toks", "do_sample"})

_WITHOUT_EFFECT: Mapping[str, object] = {
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
"""What would change the answer, and with what value it does not."""

_warned: set[str] = set()


def read_settings(
    gen_kwargs: Mapping[str, Any], max_gen_toks: int, think_end_token: str | int | None
) -> GenerationParams:
    """How a prompt is continued.

    Args:
        gen_kwargs: A request's, which stay as they are.
        max_gen_toks: How much is generated where they do not say.
        think_end_token: What ends the model's thoughts, as text or as a token.

    Raises:
        UnsupportedRequest: As `read_sampling`.
        UsageError: A value is not possible.
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
        sampling=read_sampling(normal),
    )


def read_sampling(normal: Mapping[str, Any]) -> SamplingParams | None:
    """How tokens are drawn; None where the most likely one is taken.

    Args:
        normal: As lm_eval's ``normalize_gen_kwargs`` returns it.

    Raises:
        UnsupportedRequest: Something is asked for that would change the answer and is not there, such as beam search.
        UsageError: A value is not possible.
    """
    for name, neutral in _WITHOUT_EFFECT.items():
        value = normal.get(name)
        if value is not None and value != neutral:
            raise UnsupportedRequest(
                f"the task asks for {name}={value}, which is not supported; run with --gen_kwargs {name}={neutral} to do "
                "without"
            )
    known = {field.name for field in msgspec.structs.fields(SamplingParams)}
    for name in sorted(set(normal) - known - _READ_ELSEWHERE - set(_WITHOUT_EFFECT) - _warned):
        _warned.add(name)
        logger.warning("generation_kwargs hold %s=%r, which means nothing here and is left out", name, normal[name])
    if not normal.get("do_sample"):
        return None
    given = {name: normal[name] for name in sorted(known) if normal.get(name) is not None}
    if given.get("top_k") == -1:
        given["top_k"] = 0  # vllm's word for all
    if not float(given.get("temperature") or 0.0):
        return None
    try:
        return msgspec.convert(given, SamplingParams, strict=False)
    except msgspec.ValidationError as error:
        asked = ", ".join(f"{name}={value}" for name, value in given.items())
        raise UsageError(f"tokens cannot be drawn by {asked}: {error}") from error

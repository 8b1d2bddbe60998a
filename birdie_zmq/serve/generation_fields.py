"""The sampling parameters of a request, in OpenAI's names and vLLM's, as the generation parameters of the engine."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from birdie_zmq.generation_options import (
    LOGITS_OPTIONS,
    SAMPLING_OPTIONS,
    UnsupportedOption,
    read_logits_option,
    tokens_outside,
)
from birdie_zmq.serve.api_error import ApiError, invalid
from birdie_zmq.serve.fields import Fields
from birdie_zmq.types import GenerationParams, LogitsParams, SamplingParams

MAX_STOPS = 64
_Stop = Annotated[str, Meta(max_length=4096)]
_Stops = _Stop | Annotated[tuple[_Stop, ...], Meta(max_length=MAX_STOPS)]

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "user": (),
    "safety_identifier": (),
    "metadata": (),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "spaces_between_special_tokens": (True,),
    "early_stopping": (False,),
}


def take_generation_params(fields: Fields, vocab_size: int) -> tuple[GenerationParams, int | None]:
    """Remove the sampling parameters from a request; return them, and the seed.

    Args:
        fields: The fields of the request.
        vocab_size: The number of tokens of the model; 0 if it is unknown.

    Raises:
        ApiError: A value is invalid or not supported.
    """
    fields.allow(_NEUTRAL)
    seed: int | None = fields.take_optional("seed", int)
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise invalid("seed must have at most 64 bits", "seed")
    stop: str | tuple[str, ...] | None = fields.take_optional("stop", _Stops)
    until = (stop,) if isinstance(stop, str) else stop or ()
    given = set(fields.names())
    sampling = _take_sampling(fields)
    logits = _take_logits(fields)
    overriding = LOGITS_OPTIONS | (SAMPLING_OPTIONS if sampling is not None else frozenset())
    named = tuple(sorted(given & overriding))
    params = GenerationParams(
        until=tuple(each for each in until if each), sampling=sampling, logits=logits, given=named
    )
    if outside := tokens_outside(params, vocab_size):
        raise invalid(f"the request names {outside}, but the model has {vocab_size:,} tokens only")
    return params, seed


def _take_sampling(fields: Fields) -> SamplingParams | None:
    """Remove temperature and filters; None for greedy decoding."""
    values = {name: value for name in sorted(SAMPLING_OPTIONS) if (value := fields.take_raw(name)) is not None}
    temperature = values.setdefault("temperature", 1.0)
    if values.get("top_k") == -1:
        values["top_k"] = 0  # vLLM writes -1 for no limit
    is_greedy = type(temperature) in (int, float) and temperature == 0
    if is_greedy:
        values["temperature"] = 1.0  # the others are checked all the same
    try:
        sampling = msgspec.convert(values, SamplingParams)
    except (msgspec.ValidationError, OverflowError) as error:
        raise invalid(f"the sampling parameters are invalid: {error}") from None
    return None if is_greedy else sampling


def _take_logits(fields: Fields) -> LogitsParams | None:
    """Remove the parameters that change logits or EOS tokens; None if they change nothing."""
    values: dict[str, Any] = {}
    for name in sorted(LOGITS_OPTIONS):
        value = fields.take_raw(name)
        if value is None:
            continue
        try:
            field, read = read_logits_option(name, value)
        except UnsupportedOption as error:
            raise ApiError(400, f"the request has {error}", param=name, code="unsupported") from None
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            raise invalid(f"{name} is invalid: {error}", name) from None
        values[field] = max(read, values[field]) if field in values else read
    params = LogitsParams(**values)
    return None if params == LogitsParams() else params


def random_key(seed: int | None, prompt: str | bytes, index: int) -> int:
    """Return the random key of an answer: with a seed, the same for the same request; without one, always another."""
    if seed is None:
        return secrets.randbits(62)
    content = prompt if isinstance(prompt, bytes) else b"text:" + prompt.encode(errors="surrogatepass")
    digest = hashlib.sha256(f"{seed}:{index}:".encode() + content).digest()
    return int.from_bytes(digest[:8], "big") >> 2

"""Parses generation requests: a task's ``generation_kwargs`` and lm_eval's ``--gen_kwargs`` become parameters."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs

from birdie_zmq.client.batching import Prompt, assign_random_keys
from birdie_zmq.errors import UnsupportedRequest, UsageError
from birdie_zmq.generation_options import (
    COMPUTED,
    INSTEAD,
    LENGTH_OPTIONS,
    LOGITS_OPTIONS,
    NO_EFFECT,
    SAMPLING_OPTIONS,
    UNSUPPORTED,
    UnsupportedOption,
    is_neutral,
    read_logits_option,
    tokens_outside,
)
from birdie_zmq.harness.model_args import RunArguments
from birdie_zmq.types import GenerationParams, LogitsParams, SamplingParams

logger = logging.getLogger("lm_eval.birdie_zmq")

_warned: set[str] = set()


def parse_prompts(
    requests: Sequence[Instance], texts: Sequence[str], arguments: RunArguments, vocab_size: int
) -> list[Prompt]:
    """Return the prompts of generation requests, with their parameters and, if they are sampled, random keys.

    Args:
        requests: Requests with the arguments ``(prompt, generation_kwargs)``.
        texts: The prompt of each request, as text.
        arguments: The arguments of the run.
        vocab_size: Number of tokens that the model has logits for, 0 if it is unknown.

    Raises:
        UnsupportedRequest: An unsupported option would change the answer, such as beam search.
        UsageError: A value is invalid.
    """
    parsed: dict[str, GenerationParams] = {}  # the requests of a task have equal generation_kwargs
    items = []
    for request, text in zip(requests, texts, strict=True):
        content = repr(request.args[1])
        if content not in parsed:
            params = parse_generation_params(request.args[1], arguments.max_gen_toks, arguments.think_end_token)
            if outside := tokens_outside(params, vocab_size):
                raise UsageError(
                    f"generation_kwargs name {outside}, but the model has logits for {vocab_size} tokens only"
                )
            parsed[content] = params
        items.append((text, parsed[content]))
    return assign_random_keys(items, arguments.seed)


def parse_generation_params(
    gen_kwargs: Mapping[str, Any], max_gen_toks: int, think_end_token: str | int | None
) -> GenerationParams:
    """Parse the ``generation_kwargs`` of a request.

    Args:
        gen_kwargs: The ``generation_kwargs``; they are not modified.
        max_gen_toks: Maximum number of generated tokens if they do not set one.
        think_end_token: End of the model's reasoning, as text or as a token id.

    Raises:
        UnsupportedRequest: An unsupported option would change the answer, such as beam search.
        UsageError: A value is invalid.
    """
    given = {name: value for name, value in copy.deepcopy(dict(gen_kwargs)).items() if value is not None}
    until = given.pop("until", ())
    stops = [until] if isinstance(until, str) else list(until)
    if not all(isinstance(stop, str) for stop in stops):
        raise UsageError(f"until={until!r} must be a string or a list of strings")
    sampling = parse_sampling_params(given)
    _reject_unsupported(given, sampled=sampling is not None)
    _warn_unknown(given)
    logits = _parse_logits_params(given)
    return GenerationParams(
        until=tuple(stops),
        max_gen_toks=_max_gen_toks(given, max_gen_toks),
        think_end_token=think_end_token,
        sampling=sampling,
        logits=logits,
        given=tuple(sorted(given.keys() & _overriding(sampled=sampling is not None))),
    )


def parse_sampling_params(given: Mapping[str, Any]) -> SamplingParams | None:
    """Parse sampling parameters; None for greedy decoding.

    ``do_sample=True`` without a temperature samples at temperature 1, as transformers does. A temperature without
    ``do_sample`` samples as well, as lm_eval prescribes.

    Args:
        given: The ``generation_kwargs`` of a request, without values of None.

    Raises:
        UsageError: A value is invalid, or ``do_sample=True`` contradicts ``temperature=0``.
    """
    do_sample = given.get("do_sample")
    values = {name: given[name] for name in sorted(SAMPLING_OPTIONS & given.keys())}
    if do_sample is not None and not do_sample:
        return None
    if "temperature" not in values:
        if not do_sample:
            return None
    elif _is_zero(values["temperature"]):
        if not do_sample:
            return None
        raise UsageError(
            f"do_sample={do_sample} contradicts temperature={values['temperature']}: set do_sample=False for greedy "
            "decoding, or a temperature above 0 to sample"
        )
    if values.get("top_k") == -1:
        values["top_k"] = 0  # vLLM writes -1 for no limit
    try:
        return msgspec.convert(values, SamplingParams, strict=False)
    except msgspec.ValidationError as error:
        shown = ", ".join(f"{name}={value}" for name, value in values.items())
        raise UsageError(f"invalid sampling parameters {shown}: {error}") from error


def _is_zero(value: object) -> bool:
    try:
        return float(value) == 0.0  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False  # the conversion to SamplingParams names it


def _reject_unsupported(given: Mapping[str, Any], *, sampled: bool) -> None:
    for name in sorted(given.keys() & UNSUPPORTED.keys()):
        value = given[name]
        if is_neutral(name, value, sampled=sampled):
            continue
        neutral = next(iter(UNSUPPORTED[name]), None)
        instead = INSTEAD.get(name)
        if instead is None and isinstance(neutral, int | float):
            instead = f"run with --gen_kwargs {name}={neutral} to turn it off"
        raise UnsupportedRequest(
            f"the task requests {name}={value}, which is not supported; "
            f"{instead or f'remove {name} from generation_kwargs'}"
        )


def _warn_unknown(given: Mapping[str, Any]) -> None:
    for name in sorted(given.keys() - COMPUTED - UNSUPPORTED.keys() - NO_EFFECT - _warned):
        _warned.add(name)
        logger.warning("generation_kwargs contain the unknown option %s=%r; it is ignored", name, given[name])


def _parse_logits_params(given: Mapping[str, Any]) -> LogitsParams | None:
    """Parse the options that change logits or EOS tokens; None if they change nothing.

    Raises:
        UnsupportedRequest: A bias or a bad word has several tokens.
        UsageError: A value is invalid.
    """
    values: dict[str, Any] = {}
    for name in sorted(given.keys() & LOGITS_OPTIONS):
        try:
            field, value = read_logits_option(name, given[name])
        except UnsupportedOption as error:
            raise UnsupportedRequest(f"the task requests {error}") from error
        except ValueError as error:
            raise UsageError(f"generation_kwargs: {error}") from error
        values[field] = max(value, values[field]) if field in values else value
    params = LogitsParams(**values)
    return None if params == LogitsParams() else params


def _overriding(*, sampled: bool) -> frozenset[str]:
    """Return the options of a request that replace those of the checkpoint's generation_config.json."""
    return LOGITS_OPTIONS | UNSUPPORTED.keys() | (SAMPLING_OPTIONS if sampled else frozenset())


def _max_gen_toks(given: Mapping[str, Any], default: int) -> int:
    """Return the maximum number of generated tokens, by lm_eval's rules for its names.

    Raises:
        UsageError: It is not a number.
    """
    lengths = {name: given[name] for name in sorted(given.keys() & LENGTH_OPTIONS)}
    try:
        # With both, lm_eval warns if do_sample=False turns the temperature off. With do_sample alone it would warn of a
        # temperature of 0 that nobody has set.
        both = {
            name: given[name] for name in ("do_sample", "temperature") if {"do_sample", "temperature"} <= given.keys()
        }
        count = int(normalize_gen_kwargs(lengths | both, default)["max_gen_toks"])
    except (TypeError, ValueError) as error:
        raise UsageError(f"invalid number of generated tokens {lengths}: {error}") from error
    if count < 1:
        raise UsageError(f"the number of generated tokens must be at least 1, not {count} ({lengths})")
    return count

"""The settings of a generation, from a request's parameters, the tokenizer, and the checkpoint's generation_config.json.

hf's ``generate`` applies ``generation_config.json`` to every option that a call does not set, also to greedy decoding. The
same is done here with the options that are computed; each of the others is named in a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from birdie_zmq.engine.backend import TokenChoice
from birdie_zmq.engine.detokenizer import StopConditions
from birdie_zmq.engine.events import Notice
from birdie_zmq.engine.logits_processing import LogitsProcessing
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import RequestError
from birdie_zmq.generation_options import (
    LOGITS_OPTIONS,
    SAMPLING_OPTIONS,
    UNSUPPORTED,
    is_neutral,
    read_logits_option,
    tokens_outside,
)
from birdie_zmq.types import GenerationParams, LogitsParams, SamplingParams

_REQUEST_SETS = frozenset({"max_length", "eos_token_id"})
"""Options of generation_config.json that are not merged: every request sets its length, the tokenizer has the EOS tokens."""

_NEUTRAL_LOGITS = LogitsParams()

_NO_EOS = (
    "the tokenizer has no EOS token, so an answer ends only at a stop string or after max_gen_toks tokens; set "
    "eos_token_id in generation_kwargs, or the attribute eos_token_id of the tokenizer"
)


@dataclass(frozen=True)
class GenerationSettings:
    """The settings of a generation.

    Attributes:
        choice: How tokens are chosen.
        stop: What ends an answer. An EOS token that the request names belongs to the answer: hf decodes it, and leaves it
            out of the text only if it is a special token.
        notices: What the user should know.
    """

    choice: TokenChoice
    stop: StopConditions
    notices: tuple[Notice, ...]


def generation_settings(request: GenerationParams, tokenizer: TokenizerAdapter, vocab_size: int) -> GenerationSettings:
    """Return the settings for a request's parameters.

    Args:
        request: The generation parameters of the request.
        tokenizer: The model's tokenizer.
        vocab_size: The number of tokens for which the model has logits; 0 if it is unknown.

    Raises:
        RequestError: The request names a token that the model does not have.
    """
    if outside := tokens_outside(request, vocab_size):
        raise RequestError(f"generation_kwargs name {outside}, but the model has logits for {vocab_size} tokens only")
    logits, sampling, notices = _with_defaults(request, tokenizer.generation_defaults, vocab_size)
    given_ends = frozenset((*(logits.eos_token_id or ()), *logits.stop_token_ids))
    ends = tokenizer.eos_token_ids
    if logits.eos_token_id is not None:
        # lm_eval's hf adds the text of the tokenizer's own EOS to the stop strings, so this one still ends an answer.
        own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        ends = frozenset((*logits.eos_token_id, *own))
    if logits.ignore_eos:
        ends = frozenset()
    ends |= frozenset(logits.stop_token_ids)
    if not ends and not logits.ignore_eos:
        notices.append(Notice("warning", _NO_EOS))
    return GenerationSettings(
        TokenChoice(sampling, _processing(logits, ends)),
        StopConditions(ends, request.max_gen_toks, given_ends - tokenizer.eos_token_ids),
        tuple(notices),
    )


def _processing(logits: LogitsParams, ends: frozenset[int]) -> LogitsProcessing | None:
    """Return the changes of logits; None if there are none."""
    has_minimum = bool(ends) and (logits.min_new_tokens > 0 or logits.min_length > 0)
    processing = LogitsProcessing(
        bias=logits.sequence_bias + logits.logit_bias,
        # transformers removes EOS tokens from the bad words.
        forbidden=logits.suppress_tokens + tuple(id for id in logits.bad_words_ids if id not in ends),
        forbidden_first=logits.begin_suppress_tokens,
        end_tokens=tuple(sorted(ends)) if has_minimum else (),
        min_new_tokens=logits.min_new_tokens if has_minimum else 0,
        min_length=logits.min_length if has_minimum else 0,
        repetition_penalty=logits.repetition_penalty,
        presence_penalty=logits.presence_penalty,
        frequency_penalty=logits.frequency_penalty,
    )
    return None if processing == LogitsProcessing() else processing


def _with_defaults(
    request: GenerationParams, defaults: Mapping[str, Any], vocab_size: int
) -> tuple[LogitsParams, SamplingParams | None, list[Notice]]:
    """Return a request's parameters with the defaults for the options that it does not set, and notices about them."""
    logits, sampling = request.logits or _NEUTRAL_LOGITS, request.sampling
    given = set(request.given)
    if "min_tokens" in given:
        given.add("min_new_tokens")
    applied: list[str] = []
    ignored: list[str] = []
    for name, value in sorted(defaults.items()):
        if value is None or name in given or name in _REQUEST_SETS:
            continue
        try:
            if name in LOGITS_OPTIONS:
                field, read = read_logits_option(name, value)
                read = _within_vocabulary(field, read, vocab_size)
                if read == getattr(_NEUTRAL_LOGITS, field):
                    continue
                logits = msgspec.structs.replace(logits, **{field: read})
            elif name in SAMPLING_OPTIONS and sampling is not None:
                values = msgspec.structs.asdict(sampling) | {name: value}
                changed = msgspec.convert(values, SamplingParams, strict=False)
                if changed == sampling:
                    continue
                sampling = changed
            elif name in UNSUPPORTED and not is_neutral(name, value, sampled=sampling is not None):
                raise ValueError(name)
            else:
                continue
        except ValueError:
            ignored.append(f"{name}={value!r}")
            continue
        applied.append(f"{name}={value!r}")
    return logits, sampling, _notices(applied, ignored)


def _notices(applied: Sequence[str], ignored: Sequence[str]) -> list[Notice]:
    """Return what is said about the options of generation_config.json, each given as ``name=value``."""
    source = "the checkpoint's generation_config.json sets"
    notices: list[Notice] = []
    if applied:
        notices.append(Notice("info", f"{source} {', '.join(applied)}, which is applied as by hf"))
    if ignored:
        text = (
            f"{source} {', '.join(ignored)}, which hf applies and birdie-zmq does not; the texts may differ from hf's"
        )
        notices.append(Notice("warning", text))
    return notices


def _within_vocabulary(field: str, value: Any, vocab_size: int) -> Any:
    """Leave out forbidden tokens that the model does not have, as transformers does with those of a checkpoint.

    Raises:
        ValueError: A bias is for a token that the model does not have.
    """
    if not vocab_size:
        return value
    if field in ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids"):
        return tuple(id for id in value if id < vocab_size)
    if field in ("sequence_bias", "logit_bias") and any(id >= vocab_size for id, _ in value):
        raise ValueError(field)
    return value

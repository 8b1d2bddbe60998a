"""The body of ``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from birdie_zmq.completions import MAX_TOP, CompletionParams, CompletionPrompt
from birdie_zmq.serve.api_error import ApiError, invalid
from birdie_zmq.serve.fields import Fields
from birdie_zmq.serve.generation_fields import random_key, take_generation_params
from birdie_zmq.serve.settings import ServeSettings

_PART_TOKENS = 16
"""Parts of an answer that nobody sees yet are sent after this number of tokens."""

Top = Annotated[int, Meta(ge=0, le=MAX_TOP)]
MaxTokens = Annotated[int, Meta(ge=0, lt=2**31)]
Repeats = Annotated[int, Meta(ge=1, lt=2**31)]


@dataclass(frozen=True)
class ModelLimits:
    """What a request may ask of the model.

    Attributes:
        names: The names that a request may call it by.
        vocab_size: The number of tokens; 0 if it is unknown.
        max_length: The maximum number of tokens of a prompt and its answer.
    """

    names: tuple[str, ...]
    vocab_size: int
    max_length: int


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """A request for completions.

    Attributes:
        model: The name of the model in the request.
        prompts: The prompts, each ``n`` times one after another.
        params: The parameters of all prompts.
        echo: Whether the answers begin with the prompts.
        logprobs: The number of most likely tokens that are shown for each position; None for no log-probabilities.
        prompt_logprobs: As in vLLM, the same for the prompt, in a field of its own.
        stream: Whether the answer is sent in parts.
        stream_usage: Whether the last part has the numbers of tokens.
        tokens_as_ids: Whether tokens are shown by their numbers, as in vLLM.
        chat: Whether it is a request for a chat completion.
    """

    model: str
    prompts: tuple[CompletionPrompt, ...]
    params: CompletionParams
    n: int = 1
    echo: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stream: bool = False
    stream_usage: bool = False
    tokens_as_ids: bool = False
    chat: bool = False


def parse_completion(content: Mapping[str, Any], limits: ModelLimits, settings: ServeSettings) -> CompletionRequest:
    """Return the request of a JSON object.

    Raises:
        ApiError: A field is unknown, invalid or not supported, or the model is another one.
    """
    fields = Fields(content)
    model = take_model(fields, limits)
    fields.allow({"suffix": ("",)})
    prompts = _read_prompts(fields.take_raw("prompt"), limits)
    n = take_repeats(fields, len(prompts), settings)
    max_tokens = take_max_tokens(fields, ("max_tokens", "max_completion_tokens"), 16)
    logprobs: int | None = fields.take_optional("logprobs", Top)
    prompt_logprobs: int | None = fields.take_optional("prompt_logprobs", Top)
    echo = fields.take("echo", bool, False)
    stream, usage = take_stream(fields)
    if stream and (echo or prompt_logprobs is not None):
        raise invalid("stream cannot be used with echo or prompt_logprobs; send the request without stream", "stream")
    add_special_tokens = fields.take("add_special_tokens", bool, True)
    tokens_as_ids = fields.take("return_tokens_as_token_ids", bool, False)
    generation, seed = take_generation_params(fields, limits.vocab_size)
    fields.finish()
    shown = [each for each in (logprobs if echo else None, prompt_logprobs) if each is not None]
    params = CompletionParams(
        generation=generation,
        prompt_logprobs=max(shown, default=None),
        logprobs=logprobs,
        add_special_tokens=add_special_tokens,
        with_texts=logprobs is not None or prompt_logprobs is not None or echo,
        part_tokens=part_tokens(max_tokens, stream=stream),
    )
    return CompletionRequest(
        model=model,
        prompts=repeated(prompts, n, max_tokens, None if generation.sampling is None else (seed,)),
        params=params,
        n=n,
        echo=echo,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        stream=stream,
        stream_usage=usage,
        tokens_as_ids=tokens_as_ids,
    )


def part_tokens(max_tokens: int, *, stream: bool) -> int:
    """Return after how many tokens parts of an answer are sent: they also let an interrupted generation continue."""
    if stream:
        return 1
    return _PART_TOKENS if max_tokens > 1 else 0


def take_model(fields: Fields, limits: ModelLimits) -> str:
    """Remove the name of the model; without one, the request is for the model that is served.

    Raises:
        ApiError: The name is that of another model.
    """
    name = fields.take("model", Annotated[str, Meta(max_length=4096)], limits.names[0])
    if name not in limits.names:
        message = f"this server has no model of that name; it serves {', '.join(limits.names)}"
        raise ApiError(404, message, param="model", code="model_not_found")
    return name


def take_stream(fields: Fields) -> tuple[bool, bool]:
    """Remove ``stream`` and its options; return whether to stream, and whether to end with the numbers of tokens."""
    stream = fields.take("stream", bool, False)
    options = Fields(fields.take_optional("stream_options", dict[str, Any]) or {})
    usage = options.take("include_usage", bool, False)
    options.allow({"continuous_usage_stats": (False,), "include_obfuscation": (False,)})
    options.finish()
    return stream, usage


def take_repeats(fields: Fields, prompts: int, settings: ServeSettings) -> int:
    """Remove ``n``, the number of answers to each prompt.

    Raises:
        ApiError: The request has too many answers.
    """
    n = fields.take("n", Repeats, 1)
    if n * prompts > settings.max_prompts:
        raise invalid(
            f"{prompts:,} prompts with n={n:,} are over the limit of {settings.max_prompts:,} per request", "n"
        )
    return n


def take_max_tokens(fields: Fields, names: Sequence[str], default: int) -> int:
    """Remove the maximum number of generated tokens, which has one of some names, or several, as LiteLLM sends it.

    Raises:
        ApiError: The values differ, or one is invalid.
    """
    given = [name for name in names if name in fields]
    values = {fields.take(name, MaxTokens, default) for name in given} or {default}
    if len(values) > 1:
        raise invalid(f"{' and '.join(given)} mean the same, but have different values; set one of them", given[1])
    return values.pop()


def repeated(
    prompts: Sequence[CompletionPrompt], n: int, max_tokens: int, sampled: tuple[int | None] | None
) -> tuple[CompletionPrompt, ...]:
    """Return each prompt `n` times with the maximum number of tokens, and with keys if tokens are sampled by a seed."""
    result = []
    for prompt in prompts:
        for index in range(n):
            content = prompt.ids if prompt.text is None else prompt.text
            key = 0 if sampled is None else random_key(sampled[0], content, index)
            result.append(CompletionPrompt(text=prompt.text, ids=prompt.ids, max_tokens=max_tokens, key=key))
    return tuple(result)


def _read_prompts(value: Any, limits: ModelLimits) -> list[CompletionPrompt]:
    """Return the prompts: a text, a list of texts, token ids, or a list of lists of token ids."""
    match value:
        case None:
            raise invalid("prompt is missing", "prompt")
        case str():
            return [CompletionPrompt(text=value)]
        case []:
            raise invalid("prompt is an empty list", "prompt")
        case [str(), *_]:
            if not all(isinstance(each, str) for each in value):
                raise _wrong_prompt()
            return [CompletionPrompt(text=each) for each in value]
        case [int(), *_]:
            return [CompletionPrompt(ids=pack_token_ids(value, limits, "prompt"))]
        case [list(), *_]:
            if not all(isinstance(each, list) for each in value):
                raise _wrong_prompt()
            return [CompletionPrompt(ids=pack_token_ids(each, limits, "prompt")) for each in value]
    raise _wrong_prompt()


def _wrong_prompt() -> ApiError:
    return invalid("prompt must be a text, a list of texts, a list of token ids, or a list of such lists", "prompt")


def pack_token_ids(ids: list[Any], limits: ModelLimits, name: str) -> bytes:
    """Return token ids as bytes of int32.

    Raises:
        ApiError: They are none, are not token ids of the model, or more than it can read.
    """
    if not ids:
        raise invalid(f"{name} has an empty list of token ids", name)
    if len(ids) > limits.max_length:
        raise invalid(
            f"the model's maximum context length is {limits.max_length:,} tokens, but {name} has {len(ids):,} tokens",
            name,
        )
    if any(type(id) is not int for id in ids):
        raise invalid(f"{name} has a list with something other than token ids", name)
    lowest, highest = min(ids), max(ids)
    if lowest < 0 or highest >= (limits.vocab_size or 2**31):
        wrong = lowest if lowest < 0 else highest
        shown = wrong if abs(wrong) < 2**63 else "a number"
        raise invalid(f"{name} has the token {shown}, but the model has {limits.vocab_size:,} tokens only", name)
    return np.array(ids, "<i4").tobytes()

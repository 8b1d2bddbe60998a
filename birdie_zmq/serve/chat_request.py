"""The body of ``POST /v1/chat/completions``: a conversation, which the model's chat template turns into a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from birdie_zmq.completions import CompletionParams, CompletionPrompt
from birdie_zmq.serve.api_error import ApiError, invalid
from birdie_zmq.serve.completion_request import (
    CompletionRequest,
    ModelLimits,
    Top,
    part_tokens,
    repeated,
    take_max_tokens,
    take_model,
    take_repeats,
    take_stream,
)
from birdie_zmq.serve.fields import Fields, describe
from birdie_zmq.serve.generation_fields import take_generation_params
from birdie_zmq.serve.settings import ServeSettings

_MAX_MESSAGES = 4096


class _Part(msgspec.Struct, tag="text", tag_field="type", forbid_unknown_fields=True):
    """A part of a message that has several."""

    text: str


class _Message(msgspec.Struct):
    """A message; further fields, such as those of tool calls, are refused where they have a value."""

    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str | list[_Part] | None = None
    name: str | None = None
    refusal: None = None
    tool_calls: list[Any] | None = None
    function_call: None = None
    tool_call_id: None = None
    audio: None = None


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A conversation, and how it becomes a prompt.

    Attributes:
        messages: The messages, each with role and content.
        add_generation_prompt: Whether the prompt ends with the start of the model's turn; if not, the last message is
            continued.
        template_args: Further variables of the chat template.
    """

    messages: list[dict[str, str]]
    add_generation_prompt: bool = True
    template_args: Mapping[str, Any]


def take_conversation(fields: Fields) -> Conversation:
    """Remove the conversation from a request.

    Raises:
        ApiError: A message is invalid or has something other than text.
    """
    raw = fields.take_raw("messages")
    try:
        found = msgspec.convert(raw, Annotated[list[_Message], Meta(min_length=1, max_length=_MAX_MESSAGES)])
    except (msgspec.ValidationError, RecursionError) as error:
        raise invalid(
            f"messages are invalid: {describe(error)}; only messages of text are supported", "messages"
        ) from None
    adds = fields.take("add_generation_prompt", bool, True)
    continues = fields.take("continue_final_message", bool, False)
    if continues and "add_generation_prompt" in fields and adds:
        raise invalid(
            "continue_final_message and add_generation_prompt contradict each other", "continue_final_message"
        )
    template_args: dict[str, Any] = fields.take_optional("chat_template_kwargs", dict[str, Any]) or {}
    fields.allow({"tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "parallel_tool_calls": ()})
    return Conversation(
        messages=[_plain(message) for message in found],
        add_generation_prompt=adds and not continues,
        template_args=template_args,
    )


def _plain(message: _Message) -> dict[str, str]:
    if message.tool_calls:
        raise ApiError(400, "tool calls are not supported", param="messages", code="unsupported")
    content = message.content
    text = "".join(part.text for part in content) if isinstance(content, list) else content or ""
    plain = {"role": message.role, "content": text}
    return plain if message.name is None else plain | {"name": message.name}


def parse_chat(
    content: Mapping[str, Any], limits: ModelLimits, settings: ServeSettings
) -> tuple[Conversation, CompletionRequest]:
    """Return the conversation of a JSON object, and the request without its prompt.

    Raises:
        ApiError: A field is unknown, invalid or not supported, or the model is another one.
    """
    fields = Fields(content)
    model = take_model(fields, limits)
    conversation = take_conversation(fields)
    n = take_repeats(fields, 1, settings)
    max_tokens = take_max_tokens(fields, ("max_tokens", "max_completion_tokens"), limits.max_length)
    if not max_tokens:
        raise invalid("max_tokens must be at least 1", "max_tokens")
    wants_logprobs = fields.take("logprobs", bool, False)
    top = fields.take("top_logprobs", Top, 0)
    if top and not wants_logprobs:
        raise invalid("top_logprobs needs logprobs=true", "top_logprobs")
    stream, usage = take_stream(fields)
    fields.allow({"response_format": ({"type": "text"},), "modalities": (["text"],), "reasoning_effort": ("none",)})
    add_special_tokens = fields.take("add_special_tokens", bool, False)
    generation, seed = take_generation_params(fields, limits.vocab_size)
    fields.finish()
    logprobs = top if wants_logprobs else None
    params = CompletionParams(
        generation=generation,
        logprobs=logprobs,
        add_special_tokens=add_special_tokens,
        with_texts=logprobs is not None,
        part_tokens=part_tokens(max_tokens, stream=stream),
        fits_context=True,
    )
    blank = [CompletionPrompt(text="")]
    request = CompletionRequest(
        model=model,
        prompts=repeated(blank, n, max_tokens, None if generation.sampling is None else (seed,)),
        params=params,
        n=n,
        logprobs=logprobs,
        stream=stream,
        stream_usage=usage,
        chat=True,
    )
    return conversation, request

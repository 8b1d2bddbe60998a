"""vLLM's ``/tokenize``, ``/detokenize`` and ``/tokenizer_info``, which lm_eval's remote tokenizer reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from birdie_zmq.completions import Completion, CompletionPrompt
from birdie_zmq.serve.api_error import invalid
from birdie_zmq.serve.chat_request import Conversation, take_conversation
from birdie_zmq.serve.completion_request import ModelLimits, pack_token_ids, take_model
from birdie_zmq.serve.completion_response import token_texts
from birdie_zmq.serve.fields import Fields
from birdie_zmq.types import ChatTemplates, ModelDescription


def parse_tokenize(content: Mapping[str, Any], limits: ModelLimits) -> tuple[str | Conversation, bool, bool]:
    """Return the text or the conversation of a request, whether special tokens are added, and whether texts are wanted.

    Raises:
        ApiError: A field is unknown or invalid.
    """
    fields = Fields(content)
    take_model(fields, limits)
    wants_texts = fields.take("return_token_strs", bool, False)
    if "messages" in fields:
        conversation = take_conversation(fields)
        special = fields.take("add_special_tokens", bool, False)
        fields.finish()
        return conversation, special, wants_texts
    text: str | None = fields.take_optional("prompt", str)
    if text is None:
        raise invalid("prompt is missing", "prompt")
    special = fields.take("add_special_tokens", bool, True)
    fields.finish()
    return text, special, wants_texts


def tokenize_record(completion: Completion, limits: ModelLimits, *, wants_texts: bool) -> dict[str, Any]:
    """Return the tokens of a text."""
    ids: list[int] = np.frombuffer(completion.prompt_ids, "<i4").tolist()
    texts = token_texts(completion)
    return {
        "count": len(ids),
        "max_model_len": limits.max_length,
        "tokens": ids,
        "token_strs": [texts[id] for id in ids] if wants_texts else None,
    }


def parse_detokenize(content: Mapping[str, Any], limits: ModelLimits) -> CompletionPrompt:
    """Return the tokens of a request.

    Raises:
        ApiError: A field is unknown or invalid.
    """
    fields = Fields(content)
    take_model(fields, limits)
    tokens: list[Any] = fields.take_optional("tokens", list[Any]) or []
    fields.finish()
    return CompletionPrompt(ids=pack_token_ids(tokens, limits, "tokens"))


def tokenizer_info(description: ModelDescription) -> dict[str, Any]:
    """Return what is known of the tokenizer."""
    chat: ChatTemplates = description.chat
    return {
        "tokenizer_class": "birdie_zmq",
        "model_max_length": description.max_length,
        "chat_template": chat.templates.get("default"),
        "eos_token_id": description.eos_token_id,
        "bos_token_id": description.bos_token_id,
        **chat.special_tokens,
    }

"""Conversations become prompts, by the chat template of the model's tokenizer."""

from __future__ import annotations

import datetime

import jinja2

from birdie_zmq.errors import UsageError
from birdie_zmq.harness.chat_template import render, select_template
from birdie_zmq.serve.api_error import ApiError
from birdie_zmq.serve.chat_request import Conversation
from birdie_zmq.types import ModelDescription


def render_conversation(conversation: Conversation, description: ModelDescription) -> str:
    """Return the prompt of a conversation.

    Raises:
        ApiError: The tokenizer has no chat template, or the template rejects the conversation.
    """
    chat = description.chat
    try:
        template = select_template(chat, None, description.model)
        if template is None:
            raise UsageError("the tokenizer has a template method of its own, which this server does not call")
        return render(
            template,
            conversation.messages,
            chat.special_tokens,
            add_generation_prompt=conversation.add_generation_prompt,
            now=datetime.datetime.now(),
            template_args=conversation.template_args,
        )
    except UsageError as error:
        raise ApiError(400, error.message, param="messages", code="chat_template") from None
    except jinja2.TemplateError as error:
        raise ApiError(
            400, f"the chat template rejects the conversation: {error}", param="messages", code="chat_template"
        ) from None
    except (TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        # Templates come with checkpoints, and may fail in any way.
        text = f"the chat template failed with {type(error).__name__}"
        raise ApiError(400, text, param="messages", code="chat_template") from None

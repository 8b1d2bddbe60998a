"""Chat templates, rendered where the conversations are: in the lm_eval process.

Templates are jinja2 text written for transformers, which the worker sends once. They come from checkpoints that
anybody may have made, so they run in jinja2's immutable sandbox, with the same few extras that transformers gives them
(transformers' documentation, "Writing a chat template").
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox

from birdie_zmq.errors import UsageError
from birdie_zmq.types import ChatTemplates, ModelSpec

Conversation = Sequence[Mapping[str, str]]

_MARK = "birdieMarkZMQ"


def choose(chat: ChatTemplates, name: str | None, model: ModelSpec) -> str | None:
    """One of a tokenizer's templates; None where a method of its own is to be called.

    Args:
        chat: What the tokenizer has.
        name: The template's name, None for the default one.
        model: Whose tokenizer it is, for messages.

    Raises:
        UsageError: It has no such template, or none at all.
    """
    wanted = name or "default"
    if wanted in chat.templates:
        return chat.templates[wanted]
    if len(chat.templates) == 1 and name is None:
        return next(iter(chat.templates.values()))
    if chat.templates:
        known = ", ".join(sorted(chat.templates))
        raise UsageError(f"the tokenizer has no chat template named {wanted!r}; it has {known}")
    if chat.has_method:
        return None
    raise UsageError(
        f"the tokenizer of {model} has no chat template; run without --apply_chat_template, or set chat_template on what "
        "load_tokenizer returns"
    )


def render(
    template: str,
    conversation: Conversation,
    special_tokens: Mapping[str, str],
    *,
    add_generation_prompt: bool,
    template_args: Mapping[str, Any] | None = None,
) -> str:
    """Render a conversation.

    Args:
        template: The jinja2 text.
        conversation: Messages with ``role`` and ``content``.
        special_tokens: Names such as ``bos_token`` that templates use.
        add_generation_prompt: Whether to end with what opens the model's turn; if not, the last message is left open,
            so that the model goes on with it.
        template_args: Further variables of the template, such as ``enable_thinking``.

    Raises:
        jinja2.TemplateError: The template refuses the conversation, for instance its system role.
        UsageError: The last message cannot be found in what was rendered, so it cannot be left open.
    """
    messages = [dict(message) for message in conversation]
    variables = {**special_tokens, **(template_args or {})}
    if add_generation_prompt:
        return _rendered(template, messages, variables, True)
    return _left_open(template, messages, variables)


def _rendered(
    template: str, messages: list[dict[str, str]], variables: Mapping[str, Any], add_generation_prompt: bool
) -> str:
    given = {"tools": None, "documents": None, **variables}
    return _compile(template).render({**given, "messages": messages, "add_generation_prompt": add_generation_prompt})


def _left_open(template: str, messages: list[dict[str, str]], variables: Mapping[str, Any]) -> str:
    """The text up to the end of the last message.

    What the template writes behind a message is seen by rendering another one in its place that occurs nowhere else.
    Spaces at the message's end stay where the template keeps them.
    """
    text = _rendered(template, messages, variables, False)
    last = messages[-1]["content"]
    spaces = last[len(last.rstrip()) :] if last.strip() else ""
    marked = [*messages[:-1], {**messages[-1], "content": _MARK + spaces}]
    _, found, behind = _rendered(template, marked, variables, False).rpartition(_MARK)
    behind = behind.removeprefix(spaces)
    if not found or not text.endswith(behind):
        raise UsageError("the chat template changes the last message, so it cannot be continued")
    return text.removesuffix(behind)


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


class _Generation(jinja2.ext.Extension):
    """``{% generation %} … {% endgeneration %}`` marks the assistant's words for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; jinja2's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)

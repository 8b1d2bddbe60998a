"""Chat templates, rendered in the lm_eval process.

Templates are jinja2 text written for transformers. The worker sends them once. They come from untrusted checkpoints,
so they run in jinja2's immutable sandbox, with the extras that transformers provides (transformers' documentation,
"Writing a chat template").
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

_PLACEHOLDER = "birdieMarkZMQ"
"""Replaces the last message to find the text that a template writes after it; occurs in no template."""


def select_template(chat: ChatTemplates, name: str | None, model: ModelSpec) -> str | None:
    """Select one of a tokenizer's chat templates.

    Args:
        chat: The chat templates of the tokenizer.
        name: The template's name, None for the default one.
        model: The model that the tokenizer belongs to, for error messages.

    Returns:
        The jinja2 text; None if the tokenizer has an ``apply_chat_template`` method instead of a template.

    Raises:
        UsageError: The tokenizer has no template of this name, or no template at all.
    """
    requested = name or "default"
    if requested in chat.templates:
        return chat.templates[requested]
    if len(chat.templates) == 1 and name is None:
        return next(iter(chat.templates.values()))
    if chat.templates:
        known = ", ".join(sorted(chat.templates))
        raise UsageError(f"the tokenizer has no chat template named {requested!r}; it has {known}")
    if chat.has_method:
        return None
    raise UsageError(
        f"the tokenizer of {model} has no chat template; run without --apply_chat_template, or set chat_template on the "
        "tokenizer that load_tokenizer returns"
    )


def writes_date(template: str) -> bool:
    """Return whether a template may write the current date or time, so that its prompts differ from day to day."""
    return "strftime_now" in template


def render(
    template: str,
    conversation: Conversation,
    special_tokens: Mapping[str, str],
    *,
    add_generation_prompt: bool,
    now: datetime.datetime | None = None,
    template_args: Mapping[str, Any] | None = None,
) -> str:
    """Render a conversation.

    Args:
        template: The jinja2 text.
        conversation: Messages with ``role`` and ``content``.
        special_tokens: Names such as ``bos_token`` that templates use.
        add_generation_prompt: Whether to end with the start of the model's turn. If not, the last message is left open,
            so that the model continues it.
        now: The time that the function ``strftime_now`` of templates formats; None for the current time.
        template_args: Further variables of the template, such as ``enable_thinking``.

    Raises:
        jinja2.TemplateError: The template rejects the conversation, for instance its system role.
        UsageError: The last message does not occur in the rendered text, so it cannot be left open.
    """
    messages = [dict(message) for message in conversation]
    time = now or datetime.datetime.now()
    variables = {"strftime_now": lambda form: time.strftime(form), **special_tokens, **(template_args or {})}
    if add_generation_prompt:
        return _render(template, messages, variables, True)
    return _render_open_ended(template, messages, variables)


def _render(
    template: str, messages: list[dict[str, str]], variables: Mapping[str, Any], add_generation_prompt: bool
) -> str:
    context = {"tools": None, "documents": None, **variables}
    return _compile(template).render({**context, "messages": messages, "add_generation_prompt": add_generation_prompt})


def _render_open_ended(template: str, messages: list[dict[str, str]], variables: Mapping[str, Any]) -> str:
    """Render the conversation up to the end of the last message.

    To find the text that the template writes after a message, the last message is replaced by a unique placeholder and
    the conversation is rendered again. Trailing spaces of the message are kept if the template keeps them.
    """
    text = _render(template, messages, variables, False)
    last = messages[-1]["content"]
    spaces = last[len(last.rstrip()) :] if last.strip() else ""
    marked = [*messages[:-1], {**messages[-1], "content": _PLACEHOLDER + spaces}]
    _, found, suffix = _render(template, marked, variables, False).rpartition(_PLACEHOLDER)
    suffix = suffix.removeprefix(spaces)
    if not found or not text.endswith(suffix):
        raise UsageError("the chat template changes the last message, so it cannot be continued")
    return text.removesuffix(suffix)


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    return environment.from_string(template)


class _Generation(jinja2.ext.Extension):
    """The block ``{% generation %} … {% endgeneration %}``: it marks the assistant's text for training; ignored here."""

    tags = {"generation"}  # noqa: RUF012 - declared this way by jinja2

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
    """Return JSON without HTML escapes, unlike jinja2's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)

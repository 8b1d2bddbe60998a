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

Conversation = Sequence[Mapping[str, str]]


def render(
    template: str, conversation: Conversation, special_tokens: Mapping[str, str], *, add_generation_prompt: bool
) -> str:
    """Render a conversation.

    Args:
        template: The jinja2 text.
        conversation: Messages with ``role`` and ``content``.
        special_tokens: Names such as ``bos_token`` that templates use.
        add_generation_prompt: Whether to end with what opens the model's turn; if not, the last message is left open,
            so that the model goes on with it.

    Raises:
        jinja2.TemplateError: The template refuses the conversation, for instance its system role.
        UsageError: The last message cannot be found in what was rendered, so it cannot be left open.
    """
    text = _compile(template).render(
        messages=[dict(message) for message in conversation],
        add_generation_prompt=add_generation_prompt,
        **special_tokens,
    )
    return text if add_generation_prompt else _leave_open(text, conversation[-1]["content"])


def _leave_open(text: str, last: str) -> str:
    """Cut off what the template writes behind the last message; spaces that it trimmed from the message stay trimmed."""
    at = text.rfind(last.strip())
    if at < 0:
        raise UsageError("the chat template changes the last message, so it cannot be continued")
    whole = last.lstrip()
    return text[: at + len(whole)] if text[at:].startswith(whole) else text[: at + len(last.strip())]


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


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """JSON as it is; jinja2's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)

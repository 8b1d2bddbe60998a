"""Turns conversations into prompts: with a chat template of the tokenizer here, or with its own method in the worker."""

from __future__ import annotations

import datetime
import functools
import json
import logging
from collections.abc import Mapping
from typing import Any

import jinja2

from birdie_zmq.client.collector import collect
from birdie_zmq.client.job import Job
from birdie_zmq.client.journal import Journal
from birdie_zmq.client.resume import JobStreamer
from birdie_zmq.errors import UsageError
from birdie_zmq.harness.chat_template import render, select_template, writes_date
from birdie_zmq.types import ChatTemplates, ChatWork, ModelSpec

logger = logging.getLogger("lm_eval.birdie_zmq")


class ChatRenderer:
    """Renders conversations with the selected chat template of a model.

    Args:
        client: Runs the tokenizer's own method where there is no template.
        chat: The chat templates of the tokenizer.
        model: The model that the tokenizer belongs to, for error messages.
        template_args: Further variables of the template, such as ``enable_thinking``.
        journal: The journal of answers, which keeps the date of the prompts; None without one.
    """

    def __init__(
        self,
        client: JobStreamer,
        chat: ChatTemplates,
        model: ModelSpec,
        template_args: Mapping[str, Any],
        journal: Journal | None = None,
    ) -> None:
        self._client = client
        self._chat = chat
        self._model = model
        self._template_args = template_args
        self._journal = journal

    @functools.cached_property
    def template(self) -> str | None:
        """The selected template, by default the tokenizer's default one; None if it has a method instead.

        Raises:
            UsageError: The tokenizer has no chat template.
        """
        return select_template(self._chat, None, self._model)

    @property
    def writes_date(self) -> bool:
        """Whether the selected template writes the current date or time."""
        return self.template is not None and writes_date(self.template)

    @functools.cached_property
    def _now(self) -> datetime.datetime:
        """The time that the template writes: one for the whole run, and for all runs with the same journal."""
        now = datetime.datetime.now()
        if self._journal is None or not self.writes_date:
            return now
        date = self._journal.date(now)
        if date != now:
            logger.info(
                "the chat template writes the date: %s, as in the earlier prompts of %s",
                date.date(),
                self._journal.path,
            )
        return date

    def select(self, name: str | None) -> None:
        """Select a template by name, None for the default one.

        ``True``, which ``--apply_chat_template True`` passes as a text, is the default one as well.

        Raises:
            UsageError: The tokenizer has no template of this name, or no template at all.
        """
        if name is not None and name not in self._chat.templates:
            if name.lower() == "true":
                name = None
            elif name.lower() == "false":
                raise UsageError(
                    f"--apply_chat_template {name} names a template; leave the option out to use no chat template"
                )
        self.template = select_template(self._chat, name, self._model)

    def render(self, conversation: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """Render a conversation as `BirdieZMQ.apply_chat_template` does."""
        try:
            return self._render(conversation, add_generation_prompt)
        except jinja2.TemplateError as error:
            without_system = [message for message in conversation if message["role"] != "system"]
            if len(without_system) == len(conversation):
                raise UsageError(f"the chat template rejects a conversation: {error}") from error
            logger.warning("the chat template rejects the system message, which is left out: %s", error)
            return self._render(without_system, add_generation_prompt)

    def _render(self, conversation: list[dict[str, str]], add_generation_prompt: bool) -> str:
        if self.template is not None:
            return render(
                self.template,
                conversation,
                self._chat.special_tokens,
                add_generation_prompt=add_generation_prompt,
                now=self._now,
                template_args=self._template_args,
            )
        work = ChatWork(
            conversations=[conversation],
            add_generation_prompt=add_generation_prompt,
            template_args=json.dumps(self._template_args, sort_keys=True),
        )
        (text,) = collect(self._client.stream([Job(work, [0])]), 1)
        return str(text)

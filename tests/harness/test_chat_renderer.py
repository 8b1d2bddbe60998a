"""Conversations become prompts with a template of the tokenizer, or with the tokenizer's own method in the worker."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterable
from typing import Any

import pytest

from birdie_zmq.client.actions import Deliver
from birdie_zmq.client.collector import CallEvent
from birdie_zmq.client.job import Job
from birdie_zmq.errors import UsageError
from birdie_zmq.harness.chat_renderer import ChatRenderer
from birdie_zmq.types import ChatTemplates, ChatWork, ModelSpec

CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
PLAIN = "{% for message in messages %}{{ message.content }} {% endfor %}{{ bos_token }} {{ tone }}"
STRICT = "{% if messages[0].role != 'user' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"


class FakeWorker:
    """A client whose worker answers a conversation with the work that it has received, as text."""

    def stream(self, jobs: Iterable[Job], *, with_progress: bool = False) -> Generator[CallEvent, None, None]:
        assert not with_progress
        (job,) = jobs
        assert isinstance(job.work, ChatWork)
        text = f"{len(job.work.conversations[0])} {job.work.add_generation_prompt} {job.work.template_args}"
        yield Deliver(job.items, [text])


def renderer(**chat: Any) -> ChatRenderer:
    return ChatRenderer(FakeWorker(), ChatTemplates(**chat), ModelSpec(tag="mine"), {"tone": "dry"})


def test_the_default_template_gets_special_tokens_and_template_args() -> None:
    chat = renderer(templates={"default": PLAIN, "strict": STRICT}, special_tokens={"bos_token": "<s>"})

    assert chat.template == PLAIN
    assert chat.render(CONVERSATION, True) == "Be brief. Hello <s> dry"


def test_a_selected_template_is_used_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    chat = renderer(templates={"default": PLAIN, "strict": STRICT})
    chat.select("strict")

    assert chat.template == STRICT
    with caplog.at_level(logging.WARNING):
        assert chat.render(CONVERSATION, True) == "Hello"
    assert "rejects the system message, which is left out" in caplog.text
    with pytest.raises(UsageError, match="no chat template named 'other'; it has default, strict"):
        chat.select("other")


def test_a_conversation_without_system_message_may_be_rejected() -> None:
    with pytest.raises(UsageError, match="rejects a conversation: no"):
        renderer(templates={"default": STRICT}).render([{"role": "assistant", "content": "Hi"}], True)


def test_a_tokenizer_with_a_method_renders_in_the_worker() -> None:
    chat = renderer(has_method=True)

    assert chat.template is None
    assert chat.render(CONVERSATION, False) == f"2 False {json.dumps({'tone': 'dry'})}"


def test_a_tokenizer_without_template_is_an_error_when_one_is_needed() -> None:
    with pytest.raises(UsageError, match="the tokenizer of mine has no chat template"):
        renderer().render(CONVERSATION, True)

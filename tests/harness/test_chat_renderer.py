"""Conversations become prompts with a template of the tokenizer, or with the tokenizer's own method in the worker."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest

from birdie_zmq.client.actions import Deliver
from birdie_zmq.client.collector import CallEvent
from birdie_zmq.client.job import Job
from birdie_zmq.client.journal import Journal
from birdie_zmq.client.journal_records import DATE_KEY
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


@pytest.mark.parametrize("name", ["True", "true", "TRUE"])
def test_the_word_true_selects_the_default_template(name: str) -> None:
    chat = renderer(templates={"default": PLAIN, "strict": STRICT})
    chat.select(name)

    assert chat.template == PLAIN


def test_the_word_true_is_a_name_if_a_template_has_it() -> None:
    chat = renderer(templates={"default": PLAIN, "true": STRICT})
    chat.select("true")

    assert chat.template == STRICT


def test_the_word_false_is_an_error_that_says_what_to_leave_out() -> None:
    with pytest.raises(UsageError, match="--apply_chat_template False names a template; leave the option out"):
        renderer(templates={"default": PLAIN}).select("False")


DATED = "{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }} {{ messages[0].content }}"


def dated(journal: Path | None) -> ChatRenderer:
    templates = ChatTemplates(templates={"default": DATED})
    opened = None if journal is None else Journal(journal)
    return ChatRenderer(FakeWorker(), templates, ModelSpec(tag="mine"), {}, opened)


def test_a_run_has_one_date_in_all_prompts() -> None:
    chat = dated(None)

    assert chat.writes_date
    assert chat.render(CONVERSATION, True) == chat.render(CONVERSATION, True)
    assert dated(None).render(CONVERSATION, True) != chat.render(CONVERSATION, True)


def test_runs_with_one_journal_have_the_date_of_the_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "answers.journal"
    first = dated(path).render(CONVERSATION, True)

    with caplog.at_level(logging.INFO):
        again = dated(path).render(CONVERSATION, True)

    assert again == first
    assert f"the chat template writes the date: {first[:10]}, as in the earlier prompts of {path}" in caplog.text


def test_a_template_without_a_date_records_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "answers.journal")
    chat = ChatRenderer(FakeWorker(), ChatTemplates(templates={"default": PLAIN}), ModelSpec(tag="mine"), {}, journal)
    chat.render(CONVERSATION, True)

    assert not chat.writes_date
    assert journal.scan([DATE_KEY]).answers == {}

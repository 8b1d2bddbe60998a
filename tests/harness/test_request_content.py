"""The contents of requests, in the forms of all supported versions of lm_eval."""

from __future__ import annotations

from typing import Any

import pytest

from birdie_zmq.errors import UsageError
from birdie_zmq.harness.request_content import context_of, rolling_answer, rolling_text
from tests.instances import instance

USER = {"role": "user", "content": "Hello"}
ASSISTANT = {"role": "assistant", "content": "I"}


def render(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    return f"{'|'.join(message['content'] for message in messages)} {add_generation_prompt}"


def test_a_rolling_request_of_one_argument_is_its_text_and_is_answered_by_a_number() -> None:
    request = instance("loglikelihood_rolling", ("the text",))

    assert rolling_text(request) == "the text"
    assert rolling_answer(request, -1.5) == -1.5


def test_a_rolling_request_with_an_empty_context_is_its_text_and_is_answered_by_a_pair() -> None:
    request = instance("loglikelihood_rolling", ("", "the text"))

    assert rolling_text(request) == "the text"
    assert rolling_answer(request, -1.5) == (-1.5, False)


def test_a_rolling_request_with_a_context_is_an_error() -> None:
    with pytest.raises(UsageError, match="request of wikitext has a context"):
        rolling_text(instance("loglikelihood_rolling", ("a context", "the text"), task="wikitext"))


def test_a_context_may_be_a_text() -> None:
    assert context_of(instance("loglikelihood", ("a context", " b")), render) == "a context"


def test_messages_are_rendered_with_the_start_of_the_models_turn() -> None:
    assert context_of(instance("loglikelihood", ([USER], " b")), render) == "Hello True"


def test_a_last_message_of_the_assistant_is_continued() -> None:
    assert context_of(instance("generate_until", ([USER, ASSISTANT], {})), render) == "Hello|I False"


@pytest.mark.parametrize("context", [["Hello"], [], [{"role": "user"}], {"role": "user", "content": "x"}, ("a", "b")])
def test_another_context_is_an_error(context: Any) -> None:
    with pytest.raises(
        UsageError, match=r"request of chat has a context of type .* neither a text nor a list of messages"
    ):
        context_of(instance("generate_until", (context, {}), task="chat"), render)

"""Chat templates, rendered as transformers renders them, and never trusted."""

from __future__ import annotations

import re

import jinja2
import pytest
from jinja2.exceptions import SecurityError

from birdie_zmq.errors import UsageError
from birdie_zmq.harness.chat_template import Conversation, render

CHATML = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' and strict %}
        {{- raise_exception('no system role') }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

TRIMMING = "{% for message in messages %}[{{ message.role }}] {{ message.content | trim }}</s>{% endfor %}"

HELLO = [{"role": "user", "content": "Hello"}]


def ending_with(content: str) -> Conversation:
    """A conversation whose last message the model goes on with."""
    return [*HELLO, {"role": "assistant", "content": content}]


def rendered(template: str, conversation: Conversation = HELLO, **special_tokens: str) -> str:
    return render(template, conversation, special_tokens, add_generation_prompt=True)


def left_open(template: str, content: str) -> str:
    return render(template, ending_with(content), {}, add_generation_prompt=False)


# --- How a prompt ends -----------------------------------------------------------------------------------------------


def test_a_prompt_ends_with_what_opens_the_models_turn() -> None:
    text = rendered(CHATML, [{"role": "system", "content": "Be brief."}, *HELLO], bos_token="<s>")

    assert text == (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_continued_message_is_left_open() -> None:
    text = left_open(CHATML, "The answer is")

    assert text.endswith("<|im_start|>assistant\nThe answer is")


def test_spaces_at_the_end_of_a_continued_message_stay_if_the_template_keeps_them() -> None:
    assert left_open(CHATML, "The answer is \n").endswith("assistant\nThe answer is \n")


def test_spaces_that_the_template_trims_stay_trimmed() -> None:
    assert left_open(TRIMMING, " The answer is ") == "[user] Hello</s>[assistant] The answer is"


def test_a_continued_message_is_its_last_occurrence() -> None:
    assert left_open(TRIMMING, "Hello") == "[user] Hello</s>[assistant] Hello"


def test_a_continued_message_is_not_mistaken_for_what_the_template_writes_behind_it() -> None:
    assert left_open(TRIMMING, "s") == "[user] Hello</s>[assistant] s"


def test_an_empty_message_is_continued_where_it_stands() -> None:
    assert left_open(CHATML, "").endswith("<|im_start|>assistant\n")


def test_a_template_that_changes_the_last_message_cannot_continue_it() -> None:
    with pytest.raises(UsageError, match="changes the last message"):
        left_open("{{ messages[-1].content | upper }}", "The answer is")


# --- What templates may use ------------------------------------------------------------------------------------------


def test_special_tokens_are_known_by_their_names() -> None:
    assert rendered("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", bos_token="<s>", eos_token="</s>") == (
        "<s>Hello</s>"
    )


def test_special_tokens_that_are_missing_are_empty() -> None:
    assert rendered("{{ bos_token }}{{ messages[0].content }}") == "Hello"


def test_tools_and_documents_are_none() -> None:
    template = "{% if tools is none and documents is none %}plain{% else %}with tools{% endif %}"

    assert rendered(template) == "plain"


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("messages[0] | tojson", '{"role": "user", "content": "Hello"}'),
        ("'<é>' | tojson", '"<é>"'),
        ("'é' | tojson(ensure_ascii=True)", '"\\u00e9"'),
        ("[1] | tojson(indent=2)", "[\n  1\n]"),
        ("[1, 2] | tojson(separators=(',', ':'))", "[1,2]"),
        ("{'b': 1, 'a': 2} | tojson(sort_keys=True)", '{"a": 2, "b": 1}'),
    ],
)
def test_tojson_writes_json_as_it_is(expression: str, text: str) -> None:
    assert rendered("{{ " + expression + " }}") == text


def test_a_template_may_refuse_a_conversation() -> None:
    with pytest.raises(jinja2.TemplateError, match="no system role"):
        rendered(CHATML, [{"role": "system", "content": "Be brief."}], strict="yes")


def test_loops_may_be_left_and_skipped() -> None:
    template = (
        "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}"
        "{{ i }}{% endfor %}"
    )

    assert rendered(template) == "023"


def test_the_mark_of_what_the_model_wrote_is_transparent() -> None:
    assert rendered("a {% generation %}{{ messages[0].content }}{% endgeneration %} b") == "a Hello b"


def test_lines_of_statements_leave_no_space_behind() -> None:
    assert rendered("    {% if true %}\n  a\n    {% endif %}\nb\n") == "  a\nb"


def test_the_date_can_be_written() -> None:
    assert re.fullmatch(r"\d{4}", rendered("{{ strftime_now('%Y') }}"))


def test_a_template_that_cannot_be_parsed_is_an_error_of_the_template() -> None:
    with pytest.raises(jinja2.TemplateSyntaxError):
        rendered("{% for message in messages %}")


# --- What they may not -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack",
    [
        "''.__class__.__mro__",
        "messages.__class__.__base__.__subclasses__()",
        "raise_exception.__globals__['json']",
        "strftime_now.__code__.co_consts",
        "'{0.__class__.__mro__}'.format('')",
        "messages.append(1)",
        "messages[0].update(role='system')",
    ],
)
def test_a_template_reaches_nothing_but_what_it_was_given(attack: str) -> None:
    with pytest.raises(SecurityError):
        rendered("{{ " + attack + " }}")


def test_a_conversation_is_left_as_it_was() -> None:
    conversation = [dict(message) for message in ending_with("The answer is")]

    render(CHATML, conversation, {}, add_generation_prompt=False)

    assert conversation == ending_with("The answer is")


@pytest.mark.parametrize("opens", [True, False])
def test_further_words_are_variables_of_the_template(opens: bool) -> None:
    template = "{% if enable_thinking %}think {% endif %}{{ messages[0]['content'] }}"
    words = {"enable_thinking": True}
    text = render(template, HELLO, {}, add_generation_prompt=opens, template_args=words)
    assert text == "think " + HELLO[0]["content"]


def test_further_words_replace_tools_but_never_the_conversation() -> None:
    words = {"tools": "a tool", "messages": [], "add_generation_prompt": False}
    template = "{{ tools }} {{ messages | length }} {{ add_generation_prompt }}"
    assert render(template, HELLO, {}, add_generation_prompt=True, template_args=words) == f"a tool {len(HELLO)} True"

"""Chat templates: rendered as by transformers, in a sandbox."""

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
    """Return a conversation whose last message the model continues."""
    return [*HELLO, {"role": "assistant", "content": content}]


def rendered(template: str, conversation: Conversation = HELLO, **special_tokens: str) -> str:
    return render(template, conversation, special_tokens, add_generation_prompt=True)


def left_open(template: str, content: str) -> str:
    return render(template, ending_with(content), {}, add_generation_prompt=False)


# --- End of the prompt -----------------------------------------------------------------------------------------------


def test_prompt_ends_with_the_generation_prompt() -> None:
    text = rendered(CHATML, [{"role": "system", "content": "Be brief."}, *HELLO], bos_token="<s>")

    assert text == (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_last_message_is_left_open_without_generation_prompt() -> None:
    text = left_open(CHATML, "The answer is")

    assert text.endswith("<|im_start|>assistant\nThe answer is")


def test_trailing_spaces_of_the_last_message_are_kept() -> None:
    assert left_open(CHATML, "The answer is \n").endswith("assistant\nThe answer is \n")


def test_spaces_trimmed_by_the_template_stay_trimmed() -> None:
    assert left_open(TRIMMING, " The answer is ") == "[user] Hello</s>[assistant] The answer is"


def test_last_occurrence_of_the_message_is_continued() -> None:
    assert left_open(TRIMMING, "Hello") == "[user] Hello</s>[assistant] Hello"


def test_message_equal_to_the_template_suffix_is_continued() -> None:
    assert left_open(TRIMMING, "s") == "[user] Hello</s>[assistant] s"


def test_empty_last_message_is_continued() -> None:
    assert left_open(CHATML, "").endswith("<|im_start|>assistant\n")


def test_template_that_changes_the_last_message_is_rejected() -> None:
    with pytest.raises(UsageError, match="changes the last message"):
        left_open("{{ messages[-1].content | upper }}", "The answer is")


# --- Features of templates -------------------------------------------------------------------------------------------


def test_special_tokens_are_template_variables() -> None:
    assert rendered("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", bos_token="<s>", eos_token="</s>") == (
        "<s>Hello</s>"
    )


def test_missing_special_tokens_render_empty() -> None:
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
def test_tojson_does_not_escape_html(expression: str, text: str) -> None:
    assert rendered("{{ " + expression + " }}") == text


def test_raise_exception_raises_template_error() -> None:
    with pytest.raises(jinja2.TemplateError, match="no system role"):
        rendered(CHATML, [{"role": "system", "content": "Be brief."}], strict="yes")


def test_break_and_continue_work_in_loops() -> None:
    template = (
        "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}"
        "{{ i }}{% endfor %}"
    )

    assert rendered(template) == "023"


def test_generation_block_is_transparent() -> None:
    assert rendered("a {% generation %}{{ messages[0].content }}{% endgeneration %} b") == "a Hello b"


def test_block_lines_are_trimmed() -> None:
    assert rendered("    {% if true %}\n  a\n    {% endif %}\nb\n") == "  a\nb"


def test_strftime_now_formats_the_date() -> None:
    assert re.fullmatch(r"\d{4}", rendered("{{ strftime_now('%Y') }}"))


def test_invalid_template_raises_template_syntax_error() -> None:
    with pytest.raises(jinja2.TemplateSyntaxError):
        rendered("{% for message in messages %}")


# --- The sandbox -----------------------------------------------------------------------------------------------------


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
def test_sandbox_blocks_access_outside_the_template(attack: str) -> None:
    with pytest.raises(SecurityError):
        rendered("{{ " + attack + " }}")


def test_rendering_does_not_modify_the_conversation() -> None:
    conversation = [dict(message) for message in ending_with("The answer is")]

    render(CHATML, conversation, {}, add_generation_prompt=False)

    assert conversation == ending_with("The answer is")


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_template_args_are_template_variables(add_generation_prompt: bool) -> None:
    template = "{% if enable_thinking %}think {% endif %}{{ messages[0]['content'] }}"
    variables = {"enable_thinking": True}
    text = render(template, HELLO, {}, add_generation_prompt=add_generation_prompt, template_args=variables)
    assert text == "think " + HELLO[0]["content"]


def test_template_args_override_tools_but_not_the_conversation() -> None:
    variables = {"tools": "a tool", "messages": [], "add_generation_prompt": False}
    template = "{{ tools }} {{ messages | length }} {{ add_generation_prompt }}"
    assert (
        render(template, HELLO, {}, add_generation_prompt=True, template_args=variables) == f"a tool {len(HELLO)} True"
    )

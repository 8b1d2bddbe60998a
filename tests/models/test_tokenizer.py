"""The tokenizer of a checkpoint directory: special tokens, flags, chat templates and EOS tokens from every file."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel

from birdie_zmq.errors import TokenizerError
from birdie_zmq.models.tokenizer import read_tokenizer

VOCABULARY = ["<s>", "</s>", "<unk>", "<pad>", "the", "cat", "sat"]
TEMPLATE = "{{ messages[0]['content'] }}"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Make a directory with a word-level tokenizer whose post-processor adds no tokens."""
    build().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def build() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({word: id for id, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in VOCABULARY[:4]])
    return tokenizer


def add_bos_by_processor(directory: Path) -> None:
    tokenizer = build()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(directory / "tokenizer.json"))


def write_json(directory: Path, name: str, **values: Any) -> None:
    (directory / name).write_text(json.dumps(values), encoding="utf-8")


def configure(directory: Path, **values: Any) -> None:
    write_json(directory, "tokenizer_config.json", **values)


def test_tokenizer_json_alone_is_enough(directory: Path) -> None:
    tokenizer = read_tokenizer(directory)
    assert tokenizer.encode("the cat") == [4, 5]
    assert tokenizer(["the cat", "", "sat dog"]) == {"input_ids": [[4, 5], [], [6, 2]]}
    for name in ("bos_token", "bos_token_id", "eos_token", "eos_token_id", "unk_token", "pad_token", "pad_token_id"):
        assert getattr(tokenizer, name) is None
    assert (tokenizer.chat_template, tokenizer.model_max_length, tokenizer.fingerprint) == (None, None, None)
    assert tokenizer.eos_token_ids == ()


def test_bos_is_added_by_the_post_processor_unless_disabled(directory: Path) -> None:
    add_bos_by_processor(directory)
    tokenizer = read_tokenizer(directory)
    assert tokenizer.encode("the cat") == [0, 4, 5]
    assert tokenizer.encode("the cat", add_special_tokens=False) == [4, 5]
    assert tokenizer(["cat", "sat"], add_special_tokens=False) == {"input_ids": [[5], [6]]}


@pytest.mark.parametrize("flags", [{"add_bos_token": True, "add_eos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize(("by_processor", "expected"), [(False, [4]), (True, [0, 4])])
def test_post_processor_decides_and_flags_of_older_files_are_ignored(
    directory: Path, flags: dict[str, bool], by_processor: bool, expected: list[int]
) -> None:
    if by_processor:
        add_bos_by_processor(directory)
    configure(directory, bos_token="<s>", eos_token="</s>", **flags)
    assert read_tokenizer(directory).encode("the") == expected


@pytest.mark.parametrize("form", ["text", "record"])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_special_tokens_are_read_in_every_form(directory: Path, file: str, form: str) -> None:
    def stored(token: str) -> object:
        return token if form == "text" else {"content": token, "lstrip": False, "__type": "AddedToken"}

    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(directory, file, **{name: stored(token) for name, token in names.items()})
    tokenizer = read_tokenizer(directory)
    assert {name: getattr(tokenizer, name) for name in names} == names
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 3)


def test_tokenizer_config_takes_precedence_over_the_special_tokens_map(directory: Path) -> None:
    write_json(directory, "special_tokens_map.json", bos_token="<s>", eos_token="<pad>")
    configure(directory, bos_token=None, eos_token="</s>")
    tokenizer = read_tokenizer(directory)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


@pytest.mark.parametrize("name", ["bos_token", "eos_token"])
def test_bos_or_eos_outside_the_vocabulary_is_refused_with_its_name(directory: Path, name: str) -> None:
    configure(directory, **{name: "<gone>"})
    with pytest.raises(TokenizerError, match=f"{name} '<gone>' is not in the tokenizer's vocabulary"):
        read_tokenizer(directory)


def test_pad_outside_the_vocabulary_has_no_id(directory: Path) -> None:
    configure(directory, pad_token="<gone>")
    tokenizer = read_tokenizer(directory)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<gone>", None)


def test_decode_omits_special_tokens_only_on_request(directory: Path) -> None:
    tokenizer = read_tokenizer(directory)
    assert tokenizer.decode([0, 4, 5, 1]) == "<s> the cat </s>"
    assert tokenizer.decode([0, 4, 5, 1], skip_special_tokens=True) == "the cat"
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3]


def test_truncation_and_padding_of_the_file_are_disabled(directory: Path) -> None:
    saved = build()
    saved.enable_truncation(1)
    saved.enable_padding(length=5, pad_id=3, pad_token="<pad>")
    saved.save(str(directory / "tokenizer.json"))
    assert read_tokenizer(directory)(["the cat sat", "the"]) == {"input_ids": [[4, 5, 6], [4]]}


def test_chat_template_is_read_from_the_config(directory: Path) -> None:
    configure(directory, chat_template=TEMPLATE)
    assert read_tokenizer(directory).chat_template == TEMPLATE


def test_named_chat_templates_are_read_from_the_config(directory: Path) -> None:
    named = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "tools"}]
    configure(directory, chat_template=named)
    assert read_tokenizer(directory).chat_template == {"default": TEMPLATE, "tool_use": "tools"}


def test_list_with_only_a_default_template_gives_a_string(directory: Path) -> None:
    configure(directory, chat_template=[{"name": "default", "template": TEMPLATE}])
    assert read_tokenizer(directory).chat_template == TEMPLATE


def test_chat_template_file_takes_precedence_over_the_config(directory: Path) -> None:
    configure(directory, chat_template="old")
    (directory / "chat_template.jinja").write_text(TEMPLATE + "ü\n", encoding="utf-8")
    assert read_tokenizer(directory).chat_template == TEMPLATE + "ü\n"


def test_additional_chat_templates_are_named_by_their_files(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text("tools", encoding="utf-8")
    (directory / "additional_chat_templates" / "notes.txt").write_text("no template", encoding="utf-8")
    assert read_tokenizer(directory).chat_template == {"default": TEMPLATE, "tool_use": "tools"}


def test_additional_chat_template_without_a_default_keeps_its_name(directory: Path) -> None:
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "rag.jinja").write_text("rag", encoding="utf-8")
    assert read_tokenizer(directory).chat_template == {"rag": "rag"}


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 1}, {"eos_token_id": 3}, (1,)),
        ({"eos_token_id": [1, 3]}, {"eos_token_id": 2}, (1, 3)),
        ({"eos_token_id": 0}, {"eos_token_id": 2}, (0,)),
        ({"eos_token_id": None}, {"eos_token_id": 2}, (2,)),
        ({}, {"eos_token_id": [2, 3]}, (2, 3)),
        (None, {"eos_token_id": 3}, (3,)),
        (None, {}, ()),
        (None, None, ()),
    ],
)
def test_eos_tokens_come_from_the_generation_config_else_the_config(
    directory: Path, generation: dict[str, Any] | None, config: dict[str, Any] | None, expected: tuple[int, ...]
) -> None:
    for name, values in (("generation_config.json", generation), ("config.json", config)):
        if values is not None:
            write_json(directory, name, **values)
    assert read_tokenizer(directory).eos_token_ids == expected


@pytest.mark.parametrize("value", ["</s>", [1, "</s>"], 1.5])
def test_invalid_eos_token_id_is_refused_with_its_file(directory: Path, value: object) -> None:
    write_json(directory, "generation_config.json", eos_token_id=value)
    with pytest.raises(TokenizerError, match=r"eos_token_id=.*generation_config\.json"):
        read_tokenizer(directory)


def test_max_length_and_fingerprint_are_kept(directory: Path) -> None:
    configure(directory, model_max_length=512)
    tokenizer = read_tokenizer(directory, "print")
    assert (tokenizer.model_max_length, tokenizer.fingerprint) == (512, "print")


def test_missing_tokenizer_json_error_shows_the_conversion_command(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json in .*save_pretrained"):
        read_tokenizer(directory)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json"],
)
@pytest.mark.parametrize("content", [b"{", b"[]", b"", b"\xff\xfe"])
def test_damaged_file_is_refused_with_its_name(directory: Path, name: str, content: bytes) -> None:
    (directory / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=name):
        read_tokenizer(directory)


@pytest.mark.parametrize(
    "template", [[{"name": "default"}], ["text"], [{"template": "text"}]], ids=["no template", "text", "no name"]
)
def test_damaged_list_of_templates_is_refused(directory: Path, template: object) -> None:
    configure(directory, chat_template=template)
    with pytest.raises(TokenizerError, match="chat_template"):
        read_tokenizer(directory)


def test_damaged_template_file_is_refused_with_its_name(directory: Path) -> None:
    (directory / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja"):
        read_tokenizer(directory)

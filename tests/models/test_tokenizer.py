"""The tokenizer of a checkpoint directory, which transformers loads: what the engine needs of it, and errors.

tests/parity compares token ids with those of lm_eval's hf backend for each class of tokenizer.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel

from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import TokenizerError
from birdie_zmq.models.registry import FAMILIES
from birdie_zmq.models.tokenizer import read_tokenizer
from birdie_zmq.models.transformers_import import transformers_without_torch

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
    assert (tokenizer.chat_template, tokenizer.fingerprint, tokenizer.eos_token_ids) == (None, None, ())
    assert tokenizer.generation_config == {}
    assert TokenizerAdapter(tokenizer, prefix_token_id=0).max_length is None


def test_bos_is_added_by_the_post_processor_unless_disabled(directory: Path) -> None:
    add_bos_by_processor(directory)
    tokenizer = read_tokenizer(directory)
    assert tokenizer.encode("the cat") == [0, 4, 5]
    assert tokenizer.encode("the cat", add_special_tokens=False) == [4, 5]
    assert tokenizer(["cat", "sat"], add_special_tokens=False) == {"input_ids": [[5], [6]]}


@pytest.mark.parametrize(("add_bos_token", "expected"), [(None, [4, 1]), (True, [0, 4]), (False, [4])])
def test_add_bos_token_argument_replaces_the_post_processor(
    directory: Path, add_bos_token: bool | None, expected: list[int]
) -> None:
    """As in lm_eval's hf backend."""
    saved = build()
    saved.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    saved.save(str(directory / "tokenizer.json"))
    configure(directory, bos_token="<s>", eos_token="</s>")
    tokenizer = read_tokenizer(directory, add_bos_token=add_bos_token)
    assert tokenizer.encode("the") == expected
    assert tokenizer.encode("the", add_special_tokens=False) == [4]


@pytest.mark.parametrize("form", ["text", "record"])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_special_tokens_have_texts_and_ids(directory: Path, file: str, form: str) -> None:
    def stored(token: str) -> object:
        return token if form == "text" else {"content": token, "lstrip": False, "__type": "AddedToken"}

    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(directory, file, **{name: stored(token) for name, token in names.items()})
    tokenizer = read_tokenizer(directory)
    assert {name: getattr(tokenizer, name) for name in names} == names
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 3)


def test_special_token_outside_the_vocabulary_is_added_to_it(directory: Path) -> None:
    """As in transformers; the engine refuses ids that the model does not have."""
    configure(directory, pad_token="<gone>")
    tokenizer = read_tokenizer(directory)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<gone>", len(VOCABULARY))


def test_added_token_that_only_the_config_names_is_one_token(directory: Path) -> None:
    added = {"content": "<|end|>", "lstrip": False, "rstrip": True, "normalized": False, "single_word": False}
    configure(directory, added_tokens_decoder={"7": {**added, "special": True}})
    assert read_tokenizer(directory).encode("the<|end|> cat") == [4, 7, 5]


def test_decode_omits_special_tokens_only_on_request(directory: Path) -> None:
    tokenizer = read_tokenizer(directory)
    assert tokenizer.decode([0, 4, 5, 1]) == "<s> the cat </s>"
    assert tokenizer.decode([0, 4, 5, 1], skip_special_tokens=True) == "the cat"
    configure(directory, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    assert sorted(read_tokenizer(directory).all_special_ids) == [0, 1, 2, 3]


def test_truncation_and_padding_of_the_file_do_not_apply(directory: Path) -> None:
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
        (None, {"model_type": "llama"}, (2,)),  # the default of the family
        (None, {"model_type": "llama", "eos_token_id": None}, ()),
        ({}, {"model_type": "llama"}, ()),
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


def test_generation_config_is_kept(directory: Path) -> None:
    write_json(directory, "generation_config.json", eos_token_id=1, repetition_penalty=1.3)
    assert read_tokenizer(directory).generation_config == {"eos_token_id": 1, "repetition_penalty": 1.3}


def test_vocabulary_with_merges_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
    write_json(tmp_path, "config.json", model_type="gpt2")
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.encode("abba<|endoftext|>") == [2, 1, 0, 3]
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (3, 3)


def test_name_of_the_repository_is_known_to_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers loads the tokenizers of some repositories in another way, which it tells by the name."""
    build().save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path, "config.json", model_type="llama")
    seen: list[str] = []
    with transformers_without_torch() as transformers:
        original = transformers.AutoTokenizer.from_pretrained

        def spy(directory: str, **keywords: Any) -> Any:
            seen.append(keywords["config"].name_or_path)
            return original(directory, **keywords)

        monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", spy)
    assert read_tokenizer(tmp_path, name="organisation/model").encode("the") == [4]
    assert seen == ["organisation/model"]


@pytest.mark.parametrize("kind", [None, *FAMILIES])
def test_directory_without_a_vocabulary_is_refused(tmp_path: Path, kind: str | None) -> None:
    """transformers makes an empty tokenizer of most families' classes without an error."""
    if kind is not None:
        write_json(tmp_path, "config.json", model_type=kind)
    with pytest.raises(TokenizerError, match=rf"^there is no tokenizer in {tmp_path}: .*tokenizer=DIRECTORY"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer", "GemmaTokenizer"])
def test_class_without_a_vocabulary_is_refused(tmp_path: Path, kind: str) -> None:
    configure(tmp_path, tokenizer_class=kind)
    with pytest.raises(TokenizerError, match=rf"^there is no tokenizer in {tmp_path}"):
        read_tokenizer(tmp_path)


def test_vocabulary_of_only_added_and_ordinary_tokens_is_accepted(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>", "<x>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path).encode("b<x>") == [1, 5]


def test_damaged_sentencepiece_file_is_refused_with_its_name(tmp_path: Path) -> None:
    write_json(tmp_path, "config.json", model_type="llama")
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(TokenizerError, match=r"cannot load a tokenizer from .*tokenizer\.model"):
        read_tokenizer(tmp_path)


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
def test_damaged_list_of_templates_is_refused_with_its_directory(directory: Path, template: object) -> None:
    configure(directory, chat_template=template)
    with pytest.raises(TokenizerError, match=f"transformers cannot load a tokenizer from {directory}: "):
        read_tokenizer(directory)


def test_damaged_template_file_is_refused_with_its_name(directory: Path) -> None:
    (directory / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja is not UTF-8 text"):
        read_tokenizer(directory)

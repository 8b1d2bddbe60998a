"""Tokenizers in GGUF files encode as the tokenizer.json of the same model does."""

from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from birdie_zmq.errors import TokenizerError
from birdie_zmq.models.gguf_file import GgufFile
from birdie_zmq.models.gguf_pre_tokenizers import PRE_TOKENIZERS
from tests.gguf_files import add_byte_level, close
from tests.gguf_models import GPT2, byte_level
from tests.gguf_tokenizers import add_sentence_piece, sentence_piece

TEXTS = [
    "",
    " ",
    "  two  spaces ",
    "the thinking cat isn't\n\n\nthere\r\n\t",
    "In 1234567 and ٣٤ years 12½ x²",
    "naïve 東京 🦔\u200d\x00 e\u0301",
    "<|eos|>the<|eos|><|user|> cat <|bos|",
    "... #$%, (the)!? `x^2` a+b=c",
    "I'VE seen WE'RE CamelCase ABCdef don'T",
    "https://a.b/c/d\n\n \n\tif (x) {\n",
    "。你好，मैं। naïve!",  # noqa: RUF001
]


def by_expression(expression: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(expression), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])
LLAMA_3 = by_expression(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = by_expression(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = by_expression(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}"
    r"\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_4O = by_expression(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}"
    r"\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FALCON = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Punctuation("contiguous"),
        GPT2,
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ]
)
ORIGINALS = {
    "gpt-2": (GPT2, None),
    "phi-2": (GPT2, None),
    "olmo": (GPT2, normalizers.NFC()),
    "mpt": (GPT2, normalizers.NFC()),
    "smollm": (DIGITS, None),
    "starcoder": (DIGITS, None),
    "refact": (DIGITS, None),
    "command-r": (DIGITS, normalizers.NFC()),
    "falcon": (FALCON, None),
    "bloom": (by_expression(r" ?[^(\s|[.,!?…。，、।۔،])]+"), None),  # noqa: RUF001
    "llama-bpe": (LLAMA_3, None),
    "smaug-bpe": (LLAMA_3, None),
    "dbrx": (LLAMA_3, None),
    "qwen2": (QWEN_2, normalizers.NFC()),
    "tekken": (TEKKEN, None),
    "gpt-4o": (GPT_4O, None),
}
"""The pre-tokenizer and the normalizer of the tokenizer.json of each kind, written out."""


def write(path: Path, tokenizer: Tokenizer, pre: str | None, more: Any = None) -> GgufFile:
    """Write a file with only a tokenizer."""
    writer = gguf.GGUFWriter(path, "llama")
    add_byte_level(writer, tokenizer, pre)
    if more is not None:
        more(writer)
    close(writer)
    return GgufFile(path)


def test_every_pre_tokenizer_is_tested() -> None:
    assert ORIGINALS.keys() == PRE_TOKENIZERS.keys()


@pytest.mark.parametrize("pre", ORIGINALS)
def test_byte_level_tokenizer_matches_the_original(tmp_path: Path, pre: str) -> None:
    original = byte_level(*ORIGINALS[pre])
    tokenizer = write(tmp_path / "m.gguf", original, pre).tokenizer("print")
    split = tokenizer.transformers_tokenizer.backend_tokenizer.pre_tokenizer
    for text in TEXTS:
        assert split.pre_tokenize_str(text) == ORIGINALS[pre][0].pre_tokenize_str(text)
        assert tokenizer.encode(text) == original.encode(text).ids
        if ORIGINALS[pre][1] is None:
            assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("the thinking cat")) < 6  # merges are used
    assert tokenizer.decode(tokenizer.encode("<|eos|>a<|user|>"), skip_special_tokens=True) == "a<|user|>"
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|bos|>", 0)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|eos|>", 1)
    assert tokenizer.fingerprint == "print"


def test_kinds_of_pre_tokenizers_differ() -> None:
    """Otherwise the comparison above would not notice a wrong kind."""
    splits = {
        name: [split.pre_tokenize_str(normalizer.normalize_str(text) if normalizer else text) for text in TEXTS]
        for name, (split, normalizer) in ORIGINALS.items()
    }
    same = [("gpt-2", "phi-2"), ("olmo", "mpt"), ("smollm", "starcoder", "refact"), ("llama-bpe", "smaug-bpe", "dbrx")]
    assert len({str(found) for found in splits.values()}) == len(ORIGINALS) - sum(len(names) - 1 for names in same)


def test_token_is_taken_whole_whatever_the_merges_of_llama_3(tmp_path: Path) -> None:
    original = byte_level(LLAMA_3)
    original.add_tokens(["Ġunmerged"])  # in the vocabulary of the file, but no merge leads to it
    whole = original.token_to_id("Ġunmerged")
    for pre, is_whole in (("llama-bpe", True), ("smaug-bpe", False)):
        ids = write(tmp_path / f"{pre}.gguf", original, pre).tokenizer().encode(" unmerged")
        assert (ids == [whole]) == is_whole


@pytest.mark.parametrize(("bos", "eos"), [(True, True), (True, False), (False, True), (False, False)])
def test_bos_and_eos_are_added_as_the_flags_say(tmp_path: Path, bos: bool, eos: bool) -> None:
    def more(writer: gguf.GGUFWriter) -> None:
        writer.add_add_bos_token(bos)
        writer.add_add_eos_token(eos)
        writer.add_chat_template("{{ messages }}")

    tokenizer = write(tmp_path / "m.gguf", byte_level(GPT2), "gpt-2", more).tokenizer()
    inner = tokenizer.encode("cat", add_special_tokens=False)
    assert tokenizer.encode("cat") == [0] * bos + inner + [1] * eos
    assert tokenizer.chat_template == "{{ messages }}"


@pytest.mark.parametrize("pre", ["default", "glm4", None])
def test_unknown_pre_tokenizer_is_refused_with_its_name(tmp_path: Path, pre: str | None) -> None:
    file = write(tmp_path / "m.gguf", byte_level(GPT2), pre)
    with pytest.raises(TokenizerError, match=rf"gpt2/{pre} is not supported.*gpt2/qwen2.*tokenizer=DIRECTORY"):
        file.tokenizer()


def test_unknown_kind_of_tokenizer_is_refused_with_its_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("rwkv")
    close(writer)
    with pytest.raises(TokenizerError, match=r"the tokenizer rwkv/None is not supported.*tokenizer=DIRECTORY"):
        GgufFile(tmp_path / "m.gguf").tokenizer()


SENTENCES = [
    "",
    "the thinking cat isn't there",
    "  two  spaces   three ",
    "naïve 東京 🦔 e\u0301\n\n\tthere",
    "the<s>cat </s> then<bos>there",
    "1234 years",
]


def write_sentence_piece(path: Path, tokenizer: Tokenizer, architecture: str, *, gemma: bool) -> GgufFile:
    writer = gguf.GGUFWriter(path, architecture)
    add_sentence_piece(writer, tokenizer, gemma=gemma)
    close(writer)
    return GgufFile(path)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_sentence_piece_tokenizer_matches_the_original(tmp_path: Path, architecture: str) -> None:
    gemma = architecture == "gemma2"
    original = sentence_piece(prefix=not gemma, gemma=gemma)
    tokenizer = write_sentence_piece(tmp_path / "m.gguf", original, architecture, gemma=gemma).tokenizer()
    bos = original.token_to_id("<bos>" if gemma else "<s>")
    for text in SENTENCES:
        ids = original.encode(text).ids
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.encode(text) == [bos, *ids]  # as llama.cpp does where a file does not say otherwise
        assert tokenizer.decode(ids) == original.decode(ids, skip_special_tokens=False)
    assert len(tokenizer.encode("the thinking cat")) < 6  # merges are used
    assert len(tokenizer.encode("🦔", add_special_tokens=False)) >= 4  # bytes


def test_space_before_a_text_of_phi_3_is_added_to_its_own(tmp_path: Path) -> None:
    original = sentence_piece(prefix=True)
    for architecture, expected in (("llama", "▁cat"), ("phi3", "▁▁cat")):
        file = write_sentence_piece(tmp_path / f"{architecture}.gguf", original, architecture, gemma=False)
        ids = file.tokenizer().encode(" cat", add_special_tokens=False)
        assert "".join(original.id_to_token(id) or "" for id in ids) == expected

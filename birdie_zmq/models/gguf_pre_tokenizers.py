"""How byte-level BPE tokenizers split texts, by llama.cpp's names in ``tokenizer.ggml.pre``.

Each entry is that of the ``tokenizer.json`` of the models for which llama.cpp's converter writes the name. llama.cpp has
no Unicode normalisation, and adapts expressions to its own matcher; here both are as in Hugging Face's files. A name is
listed only if these are known.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tokenizers import Regex, pre_tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SYMBOLS_AND_SPACES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS_SLASHES_AND_SPACES = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LEADING, _UPPER, _LOWER = (
    r"[^\r\n\p{L}\p{N}]?",
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]",
)
_CASED_WORD = (f"{_LEADING}{_UPPER}*{_LOWER}+", f"{_LEADING}{_UPPER}+{_LOWER}*")

_LLAMA_3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _SYMBOLS_AND_SPACES
_QWEN_2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _SYMBOLS_AND_SPACES
_TEKKEN = "|".join(_CASED_WORD) + r"|\p{N}" + _SYMBOLS_SLASHES_AND_SPACES
_GPT_4O = "|".join(f"{word}{_CONTRACTIONS}?" for word in _CASED_WORD) + r"|\p{N}{1,3}" + _SYMBOLS_SLASHES_AND_SPACES
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"  # noqa: RUF001 - punctuation of several languages


class PreTokenizer(NamedTuple):
    """How texts are split before BPE.

    Attributes:
        split: A pre-tokenizer of ``tokenizers``.
        nfc: Whether texts are first normalised to Unicode's NFC.
        ignore_merges: Whether a part of a text that is a token becomes this token, whatever the merges.
    """

    split: Any
    nfc: bool = False
    ignore_merges: bool = False


def _by_expression(expression: str) -> Any:
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"), bytes_only])


_GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
_SINGLE_DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT_2])
_FALCON = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Punctuation("contiguous"),
        _GPT_2,
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ]
)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "gpt-2": PreTokenizer(_GPT_2),
    "phi-2": PreTokenizer(_GPT_2),
    "olmo": PreTokenizer(_GPT_2, nfc=True),  # of GPT-NeoX and Pythia too
    "mpt": PreTokenizer(_GPT_2, nfc=True),
    "smollm": PreTokenizer(_SINGLE_DIGITS),
    "starcoder": PreTokenizer(_SINGLE_DIGITS),
    "refact": PreTokenizer(_SINGLE_DIGITS),  # of Granite 3 too
    "command-r": PreTokenizer(_SINGLE_DIGITS, nfc=True),
    "falcon": PreTokenizer(_FALCON),
    "bloom": PreTokenizer(_by_expression(_BLOOM)),
    "llama-bpe": PreTokenizer(_by_expression(_LLAMA_3), ignore_merges=True),
    "smaug-bpe": PreTokenizer(_by_expression(_LLAMA_3)),
    "dbrx": PreTokenizer(_by_expression(_LLAMA_3)),  # of OLMo 2, Phi 4 and Granite 4 too
    "qwen2": PreTokenizer(_by_expression(_QWEN_2), nfc=True),
    "tekken": PreTokenizer(_by_expression(_TEKKEN), ignore_merges=True),
    "gpt-4o": PreTokenizer(_by_expression(_GPT_4O)),
}
"""The pre-tokenizers, by ``tokenizer.ggml.pre``."""

"""The tokenizer of a GGUF file, built from the lists in the file.

Two kinds are read: ``gpt2`` is byte-level BPE with merges, whose pre-tokenizer llama.cpp names; ``llama`` is
SentencePiece's BPE, whose merges follow from the vocabulary, with bytes for unknown characters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from birdie_zmq.errors import TokenizerError
from birdie_zmq.models.gguf_metadata import GgufMetadata
from birdie_zmq.models.gguf_pre_tokenizers import PRE_TOKENIZERS
from birdie_zmq.models.tokenizer import CheckpointTokenizer, wrap_tokenizer

_CONTROL, _USER_DEFINED = 3, 4
"""Token types in ``tokenizer.ggml.token_type``."""

_SPECIAL_IDS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_MODELS = ("gpt2", "llama")
_SPACE = "▁"
"""What SentencePiece writes for a space."""


def build_tokenizer(file: GgufMetadata, fingerprint: str | Callable[[], str] | None = None) -> CheckpointTokenizer:
    """Build the tokenizer of a GGUF file.

    Args:
        file: The file.
        fingerprint: As in `CheckpointTokenizer`.

    Raises:
        TokenizerError: Its type is not supported.
        ValueError: A key is missing.
    """
    # Files without `pre` do not name their pre-tokenizer.
    model, pre = (file.value(f"tokenizer.ggml.{key}", None) for key in ("model", "pre"))
    if model == "llama":
        tokens, tokenizer = _sentence_piece(file)
    elif model == "gpt2" and pre in PRE_TOKENIZERS:
        tokens, tokenizer = _byte_level(file, pre)
    else:
        supported = ", ".join(["llama", *(f"gpt2/{name}" for name in PRE_TOKENIZERS)])
        raise TokenizerError(
            f"{file.path}: the tokenizer {model}/{pre} is not supported in GGUF files, only {supported}; name a directory "
            "that has its tokenizer.json with tokenizer=DIRECTORY in model_args"
        )
    _add_special_tokens(file, tokens, tokenizer)
    ids = {name: file.value(f"tokenizer.ggml.{key}_token_id", None) for name, key in _SPECIAL_IDS.items()}
    _add_bos_and_eos(file, tokens, tokenizer, ids, add_bos=model == "llama")
    special = {name: tokens[id] for name, id in ids.items() if id is not None}
    return wrap_tokenizer(tokenizer, special, file.value("tokenizer.chat_template", None), fingerprint)


def _byte_level(file: GgufMetadata, pre: str) -> tuple[list[str], Tokenizer]:
    tokens: list[str] = file.value("tokenizer.ggml.tokens")
    merges = [_split_merge(merge) for merge in file.value("tokenizer.ggml.merges")]
    kind = PRE_TOKENIZERS[pre]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=kind.ignore_merges))
    if kind.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = kind.split
    tokenizer.decoder = decoders.ByteLevel()
    return tokens, tokenizer


def _split_merge(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _sentence_piece(file: GgufMetadata) -> tuple[list[str], Tokenizer]:
    """Return the tokens and the tokenizer of the kind ``llama``, as transformers builds them from such a file."""
    tokens: list[str] = file.value("tokenizer.ggml.tokens")
    is_gemma = file.architecture.startswith("gemma")
    if is_gemma:  # llama.cpp's converter writes runs of spaces as such
        tokens = [_SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
        # The scores of Gemma's tokens are not in the order of its merges, their numbers are.
        scores = [-float(id) for id in range(len(tokens))]
    else:
        scores = file.value("tokenizer.ggml.scores")
    vocabulary = {token: id for id, token in enumerate(tokens)}
    unknown = file.value("tokenizer.ggml.unknown_token_id", 3 if is_gemma else 0)
    tokenizer = Tokenizer(
        BPE(
            vocab=vocabulary,
            merges=_merges_of(vocabulary, dict(zip(tokens, scores, strict=False))),
            unk_token=tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(file.value("tokenizer.ggml.add_space_prefix", True))
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if is_gemma or not prefix:
        tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    elif file.architecture == "phi3":
        # Phi-3 adds a space to a text that begins with one too.
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="first", split=False)
    if prefix and not is_gemma:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokens, tokenizer


def _merges_of(vocabulary: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Return the merges of a SentencePiece BPE model: all pairs of tokens that form a token, the best token first."""
    found: list[tuple[float, int, int, tuple[str, str]]] = []
    for token, score in scores.items():
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(-score, -len(pair[0]), -len(pair[1]), pair) for pair in known]
    found.sort(key=lambda entry: entry[:3])
    return [entry[3] for entry in found]


def _add_special_tokens(file: GgufMetadata, tokens: list[str], tokenizer: Tokenizer) -> None:
    kinds = file.value("tokenizer.ggml.token_type", [])
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds, strict=False)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )


def _add_bos_and_eos(
    file: GgufMetadata, tokens: list[str], tokenizer: Tokenizer, ids: dict[str, Any], *, add_bos: bool
) -> None:
    """Let the tokenizer add BOS and EOS to a text if the file says so; `add_bos` is for files that say nothing."""
    defaults = {"bos": add_bos, "eos": False}
    added = {
        name: (tokens[id], id)
        for name, default in defaults.items()
        if file.value(f"tokenizer.ggml.add_{name}_token", default) and (id := ids[f"{name}_token"]) is not None
    }
    if added:
        before, after = ([added[name][0]] if name in added else [] for name in ("bos", "eos"))
        single = [*before, "$A", *after]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=[*single, "$B"], special_tokens=list(added.values())
        )

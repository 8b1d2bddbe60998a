"""Scores of a GGUF file match those of lm_eval's hf backend, on the directory it was made from and on the file.

transformers reads some architectures from GGUF files, and there not every key: the models here have its defaults where
it does not read one.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer

from birdie_zmq.models.config import read_config
from birdie_zmq.models.gguf_architectures import ARCHITECTURES
from birdie_zmq.models.gguf_file import GgufFile
from birdie_zmq.models.tensor_source import SafetensorsDirectory
from tests.gguf_files import close, llama_cpp_name, write_checkpoint
from tests.gguf_tokenizers import add_sentence_piece, sentence_piece
from tests.parity.checkpoints import make_checkpoint
from tests.parity.conftest import assert_same, hf, instances, ours
from tests.parity.test_families import HARD
from tests.parity.variants import VARIANTS

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model to write as a GGUF file: changes of a variant, and whether transformers reads such a file correctly."""

    variant: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    hf_reads_it: bool = True


CASES = {
    "llama": Case("llama"),
    "llama 3 scaling": Case("llama_rope_llama3", hf_reads_it=False),
    "llama biases": Case("llama_biases_head_dim", hf_reads_it=False),
    "mistral": Case("mistral"),
    "qwen2": Case("qwen2"),
    "qwen2 yarn": Case("qwen2_tied_window_yarn", {"use_sliding_window": False}, hf_reads_it=False),
    "qwen3": Case("qwen3", {"head_dim": 128}),
    "smollm3": Case("smollm3", hf_reads_it=False),
    "ministral3": Case("ministral3", hf_reads_it=False),
    "granite": Case("granite", hf_reads_it=False),
    "olmo2": Case("olmo2", hf_reads_it=False),
    "olmo3": Case("olmo3", hf_reads_it=False),
    "olmo3 yarn": Case("olmo3_yarn_old_keys", hf_reads_it=False),
    "exaone4": Case("exaone4", hf_reads_it=False),
    "exaone4 32B": Case("exaone4_32b_old_keys", hf_reads_it=False),
    "exaone4 full attention": Case("exaone4_full_attention_tied", hf_reads_it=False),
    "gemma": Case("gemma", hf_reads_it=False),
    "gemma2": Case("gemma2", {"head_dim": 256, "query_pre_attn_scalar": 256}),
    "gemma2 narrow heads": Case("gemma2", {"query_pre_attn_scalar": 24}, hf_reads_it=False),
    "gemma3": Case("gemma3", {"head_dim": 256, "query_pre_attn_scalar": 256}),
    "gemma3 scaling": Case(
        "gemma3",
        {
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
        hf_reads_it=False,
    ),
    "gemma3n": Case("gemma3n_text", hf_reads_it=False),
    "gemma4": Case("gemma4_text", hf_reads_it=False),
    "gemma4 E4B": Case("gemma4_text_e4b", hf_reads_it=False),
    "gemma4 31B": Case("gemma4_text_31b", hf_reads_it=False),
    "phi2": Case("phi", {"intermediate_size": 256}, hf_reads_it=False),
    "phi3": Case("phi3", {"sliding_window": None}),
    "phi3 window": Case("phi3", hf_reads_it=False),
    "phi3 longrope": Case("phi3_longrope", hf_reads_it=False),
    "phi3 partial longrope": Case("phi3_partial_longrope", hf_reads_it=False),
    "glm4": Case("glm4", hf_reads_it=False),
    "command-r": Case("cohere", hf_reads_it=False),
    "command-r norms": Case("cohere_norms_of_heads", hf_reads_it=False),
    "cohere2": Case("cohere2", hf_reads_it=False),
    "starcoder2": Case("starcoder2", {"sliding_window": None}),
    "stablelm": Case("stablelm"),
    "stablelm parallel": Case("stablelm_parallel_norms_of_heads", hf_reads_it=False),
    "falcon": Case("falcon", {"max_position_embeddings": 2048}),  # the length in every file
    "falcon grouped": Case("falcon_grouped", {"max_position_embeddings": 2048}, hf_reads_it=False),
    "bloom": Case("bloom"),
    "gpt2": Case("gpt2", {"n_positions": 1024}),
    "gpt_neox": Case("gpt_neox", hf_reads_it=False),
    "gpt_neox sequential": Case("gpt_neox_sequential", hf_reads_it=False),
}


def make_file(directory: Path, **options: Any) -> Path:
    """Write the checkpoint in a directory as a GGUF file beside it."""
    values = read_config(directory)
    source = SafetensorsDirectory(directory)
    tensors = {name: read() for name, read in source.read()}
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))

    def more(writer: gguf.GGUFWriter) -> None:
        writer.add_pad_token_id(0)  # transformers' default for Phi-3 is outside of this vocabulary

    return write_checkpoint(directory / "model.gguf", values, tensors, tokenizer, more=more, **options)


def make_directory(case: Case, directory: Path) -> Path:
    variant = VARIANTS[case.variant]
    return make_checkpoint(dataclasses.replace(variant, values=variant.values | case.changes), directory)


def test_every_architecture_is_compared(tmp_path: Path) -> None:
    import transformers

    model_types = {getattr(transformers, VARIANTS[case.variant].config).model_type for case in CASES.values()}
    assert {llama_cpp_name({"model_type": name}) for name in model_types} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", CASES)
def test_scores_match_hf(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    directory = make_directory(case, tmp_path / "model")
    file = make_file(directory)
    pairs = instances("loglikelihood", list(HARD))
    with ours(file, tokenizer=str(directory)) as mine:
        mine_scores = mine.loglikelihood(pairs, True)
    assert_same("GGUF", hf(directory).loglikelihood(pairs, True), mine_scores, HARD)
    if case.hf_reads_it:
        hf_file = hf(directory, gguf_file=file.name, tokenizer=str(directory))
        assert_same("GGUF", hf_file.loglikelihood(pairs, True), mine_scores, HARD)


def test_scores_of_quantised_weights_match_hf(tmp_path: Path) -> None:
    directory = make_directory(CASES["llama"], tmp_path / "model")
    file = make_file(directory, kind=gguf.GGMLQuantizationType.Q8_0)
    pairs = instances("loglikelihood", list(HARD))
    hf_file = hf(directory, gguf_file=file.name, tokenizer=str(directory))
    with ours(file, tokenizer=str(directory)) as mine:
        assert_same("GGUF Q8_0", hf_file.loglikelihood(pairs, True), mine.loglikelihood(pairs, True), HARD)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi3"])
def test_sentence_piece_tokenizer_matches_transformers(architecture: str, tmp_path: Path) -> None:
    import transformers

    gemma = architecture == "gemma2"
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
    add_sentence_piece(writer, sentence_piece(prefix=not gemma, gemma=gemma), gemma=gemma)
    close(writer)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": architecture}), encoding="utf-8")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path), gguf_file="model.gguf")
    mine = GgufFile(tmp_path / "model.gguf").tokenizer()
    for context, continuation in HARD:
        for text in (context + continuation, f" {context}", f"{context}<s>{continuation}</s> <bos>a"):
            assert mine.encode(text) == theirs.encode(text)
            ids = mine.encode(text, add_special_tokens=False)
            assert ids == theirs.encode(text, add_special_tokens=False)
            assert mine.decode(ids) == theirs.decode(ids)

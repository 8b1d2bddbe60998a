"""Every class of tokenizer gives the tokens and texts of lm_eval's hf backend, whichever files the checkpoint has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from birdie_zmq.models.registry import FAMILIES
from tests.parity import encode_with_ours
from tests.parity.checkpoints import make_checkpoint
from tests.parity.conftest import assert_same, hf, instances, ours
from tests.parity.tokenizer_files import TOKENIZERS
from tests.parity.variants import VARIANTS

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "Una lives in Fernley.",
    " Una lives",
    "Una lives ",
    "  two  spaces\t and a tab ",
    "Question: Where does Mira number 7 live?\nAnswer:",
    "a\n\n\nb\r\nc",
    "東京 ÅÅ naïve café \u200d🦔",
    "Привет, мир",
    "don't, we'll; U.N.  1234567 +=_ <html>",
    "<s>Una</s> lives<unk>",
    "<s> Una </s>\nlives",
    " <s>Una",
    "<bos>Una<eos>\n lives<pad>",
    "<|endoftext|>Una<|endoftext|>\n",
    "<|bos|>Una <|eos|> lives\n<|sep|>  x <|sep|>y a<|sep|>b",
    "<|end|>Una <|more|> <|end|> lives<|end|>\n",
    "<|im_start|>user\nHi<|im_end|>\n<tool_call><|vision|>",
]

ADD_BOS = (None, True, False)


def reference(directory: Path, add_bos: bool | None) -> dict[str, Any]:
    """Return what lm_eval's hf backend makes of the texts, by its own methods, without a model."""
    from lm_eval.models.huggingface import HFLM

    backend: Any = SimpleNamespace(add_bos_token=add_bos)
    HFLM._create_tokenizer(backend, str(directory), None, add_bos_token=add_bos)
    tokenizer = backend.tokenizer
    backend.prefix_token_id = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    decode: Any = HFLM.tok_decode  # its annotation is wrong: it takes a list of ids
    ids = [HFLM.tok_encode(backend, text) for text in TEXTS]
    return {
        "ids": ids,
        "whole": [decode(backend, row, skip_special_tokens=False) for row in ids],
        "skipped": [decode(backend, row) for row in ids],
        "prefix": backend.prefix_token_id,
        "eos": tokenizer.eos_token_id,
    }


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write every tokenizer."""
    root = tmp_path_factory.mktemp("tokenizers")
    found = {name: root / name for name in TOKENIZERS}
    for name, directory in found.items():
        directory.mkdir()
        TOKENIZERS[name](directory)
    return found


@pytest.fixture(scope="module")
def answers(directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Any], Any]:
    """Encode the texts with birdie-zmq's tokenizers, in a process without torch."""
    cases = [(name, add_bos) for name in directories for add_bos in ADD_BOS]
    questions = [
        {"directory": str(directories[name]), "add_bos_token": add_bos, "texts": TEXTS} for name, add_bos in cases
    ]
    folder = tmp_path_factory.mktemp("answers")
    (folder / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
    command = [sys.executable, encode_with_ours.__file__, str(folder / "questions.json"), str(folder / "answers.json")]
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    written = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    return dict(zip(cases, written, strict=True))


@pytest.mark.parametrize("add_bos", ADD_BOS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_and_texts_match_hf(
    name: str, add_bos: bool | None, directories: dict[str, Path], answers: dict[tuple[str, Any], Any]
) -> None:
    expected, found = reference(directories[name], add_bos), answers[name, add_bos]
    for text, theirs, mine in zip(TEXTS, expected["ids"], found["ids"], strict=True):
        assert mine == theirs, text
    assert found == expected


OF_FAMILIES = {
    "llama": "llama_model_legacy",
    "mistral_window": "llama_metaspace",
    "ministral": "llama_prepend",
    "qwen2": "qwen2_vocabulary",
    "qwen3": "qwen2_json",
    "gemma2": "gemma_model",
    "gemma3": "gemma_json",
    "gpt2": "gpt2_vocabulary_bare_config",
    "gpt_neox": "gpt_neox_bos",
    "bloom": "bloom_json",
    "cohere": "cohere_json",
    "cohere2": "cohere_json",
    "exaone4": "gpt2_no_prefix_space",
    "falcon": "fast_additional",
    "gemma": "gemma_model",
    "gemma3n_text": "gemma_json",
    "gemma4_text": "gemma_json",
    "glm": "fast_extra_list",
    "glm4": "fast_extra_list",
    "gptj": "gpt2_vocabulary",
    "granite": "fast_additional",
    "ministral3": "fast_bos_template",
    "olmo2": "fast_added_in_config",
    "olmo3": "fast_added_in_config",
    "opt": "opt_vocabulary",
    "phi": "codegen_vocabulary",
    "phi3": "llama_json_no_template",
    "smollm3": "fast_split_special",
    "stablelm": "gpt_neox",
    "starcoder2": "gpt2_vocabulary_bare_config",
}
"""A tokenizer for a model of each family, of the class that its released checkpoints have."""

PAIRS = [
    ("Question: Where does Mira number 7 live?\nAnswer:", " Fernley"),
    ("Question: Where does Mira number 7 live?\nAnswer:  ", "Oldbrook\n"),
    ("The pl", "ums are ripe"),
    ("", " Una lives"),
    ("東京 🦔 <s>naïve", " café 🦔 <|endoftext|>"),
    ("<s>Una<eos>", "<bos> lives <|im_end|>\n"),
]


def test_every_family_has_a_tokenizer_of_its_own() -> None:
    import transformers

    assert {getattr(transformers, VARIANTS[name].config).model_type for name in OF_FAMILIES} == set(FAMILIES)


@pytest.mark.parametrize("name", OF_FAMILIES)
def test_scores_with_the_tokenizer_of_the_family_match_hf(
    name: str, directories: dict[str, Path], tmp_path: Path
) -> None:
    directory = make_checkpoint(VARIANTS[name], tmp_path / "model")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (directory / file).unlink()
    for path in directories[OF_FAMILIES[name]].iterdir():
        if path.name != "config.json":
            shutil.copy(path, directory)
    pairs = instances("loglikelihood", list(PAIRS))
    greedy = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    prompts = instances("generate_until", [(context, dict(greedy)) for context, _ in PAIRS if context])
    theirs = hf(directory)
    with ours(directory) as mine:
        assert_same("classes", theirs.loglikelihood(pairs, True), mine.loglikelihood(pairs, True), PAIRS)
        for prompt, here in zip(prompts, mine.generate_until(prompts, True), strict=True):
            assert theirs.generate_until([prompt], True) == [here]


def test_the_tokenizers_differ(directories: dict[str, Path]) -> None:
    """Keys that should matter do, so that the comparison above is not one of equal defaults."""
    by_default = {name: reference(directory, None)["ids"] for name, directory in directories.items()}
    pairs = [
        ("llama_model", "llama_model_without_config"),
        ("llama_model", "llama_model_eos"),
        ("llama_model", "llama_model_no_bos"),
        ("llama_model", "llama_model_legacy"),
        ("llama_prepend_legacy", "llama_prepend"),
        ("gpt2_prefix_space", "gpt2_without_config"),
        ("gpt_neox", "gpt_neox_bos"),
        ("fast_added_in_config", "fast_clean_up"),
        ("fast_lstrip", "fast_clean_up"),
        ("fast_rstrip", "fast_clean_up"),
        ("fast_single_word", "fast_clean_up"),
        ("fast_split_special", "fast_clean_up"),
        ("fast_bos_template", "fast_bos_and_eos_template"),
    ]
    assert [pair for pair in pairs if by_default[pair[0]] == by_default[pair[1]]] == []

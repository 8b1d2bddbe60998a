"""A config.json as transformers 4 wrote it describes the same model as that of transformers 5."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from birdie_zmq.models.config import read_config
from birdie_zmq.models.registry import build_architecture
from tests.parity.checkpoints import make_checkpoint
from tests.parity.conftest import assert_same, hf, instances, ours
from tests.parity.test_families import HARD
from tests.parity.variants import VARIANTS
from tests.parity.version_4 import rewrite_as_version_4

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

SCORED = ["qwen2_tied_window_yarn", "gemma3", "gpt_neox"]
"""Variants whose log-likelihoods are compared too: those whose keys differ most between the versions."""


def written(name: str, directory: Path) -> Path:
    """Write only the config.json of a variant, as transformers 5 does."""
    import transformers

    variant = VARIANTS[name]
    config = getattr(transformers, variant.config)(**variant.values)
    config.architectures = [variant.config.replace("Config", "ForCausalLM")]
    config.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("name", [name for name in VARIANTS if not name.startswith("gemma4")])  # newer than version 4
def test_both_versions_give_the_same_architecture(name: str, tmp_path: Path) -> None:
    directory = written(name, tmp_path)
    newer = build_architecture(read_config(directory), "config.json")
    kept = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    rewrite_as_version_4(directory)
    older = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    assert "rope_parameters" not in older
    assert len(older) < len(kept)
    assert build_architecture(read_config(directory), "config.json") == newer


@pytest.mark.parametrize("name", SCORED)
def test_scores_match_hf_with_the_older_config(name: str, tmp_path: Path) -> None:
    directory = make_checkpoint(VARIANTS[name], tmp_path / "model")
    pairs = instances("loglikelihood", list(HARD))
    newer = hf(directory).loglikelihood(pairs, True)
    rewrite_as_version_4(directory)
    assert hf(directory).loglikelihood(pairs, True) == newer
    with ours(directory) as mine:
        assert_same(VARIANTS[name].family, newer, mine.loglikelihood(pairs, True), HARD)


def test_original_length_and_layer_types_beside_the_older_keys_match_hf(tmp_path: Path) -> None:
    """The forms of Phi-3 (the length at the top level), and of the newer Mistral models (layer_types)."""
    pairs = instances("loglikelihood", list(HARD))
    for name, keys in {
        "llama_rope_longrope": {"original_max_position_embeddings": 128, "max_position_embeddings": 512},
        "ministral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"]},
    }.items():
        directory = make_checkpoint(VARIANTS[name], tmp_path / name)
        rewrite_as_version_4(directory)
        path = directory / "config.json"
        values = json.loads(path.read_text(encoding="utf-8")) | keys
        if name == "llama_rope_longrope":
            del values["rope_scaling"]["original_max_position_embeddings"], values["rope_scaling"]["factor"]
        path.write_text(json.dumps(values), encoding="utf-8")
        theirs = hf(directory, max_length=128)
        with ours(directory, max_length=128) as mine:
            assert_same("older keys", theirs.loglikelihood(pairs, True), mine.loglikelihood(pairs, True), HARD)

"""The built-in load_model and load_tokenizer: tags, and the arguments of model_args."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from birdie_zmq.errors import ModelLoadError, TokenizerError, UnknownModelTag, UsageError
from birdie_zmq.models import load_model, load_tokenizer, loader
from birdie_zmq.models.config import CONFIG_FILE, complete_config
from birdie_zmq.models.decoder import logits
from birdie_zmq.models.families.llama import plain_llama
from birdie_zmq.models.registry import build_architecture
from birdie_zmq.models.tensor_source import WEIGHTS_FILE
from birdie_zmq.models.weights import save_checkpoint

MODEL = plain_llama(vocab_size=3, d_model=8, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=8, max_length=16)
PARAMS = MODEL.init_params(jax.random.key(0))
LOADERS = [load_model, load_tokenizer]


def add_tokenizer(directory: Path, words: list[str]) -> Path:
    directory.mkdir(exist_ok=True)
    vocabulary = {word: id for id, word in enumerate(words)}
    Tokenizer(WordLevel(vocabulary, unk_token=words[0])).save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "m", MODEL, PARAMS)
    return add_tokenizer(tmp_path / "m", ["a", "b", "c"])


def test_model_of_a_directory_computes_its_logits(checkpoint: Path) -> None:
    model = load_model(str(checkpoint))
    tokens = jnp.array([[0, 1, 2, 1]])
    assert model.logits is not None
    np.testing.assert_array_equal(model.logits(model.params, tokens), logits(MODEL, PARAMS, tokens))
    assert (model.max_length, model.vocab_size) == (16, 3)


def test_tokenizer_of_a_directory_is_loaded(checkpoint: Path) -> None:
    assert load_tokenizer(str(checkpoint)).encode("c") == [2]


def test_demo_tag_loads_the_demo() -> None:
    model, tokenizer = load_model("demo"), load_tokenizer("demo")
    assert model.max_length == tokenizer.model_max_length == 512
    ids = tokenizer.encode("Question: Where does Una live?\nAnswer:")
    assert model.logits is not None
    following = model.logits(model.params, jnp.array([ids]))[0, -1].argmax()
    assert tokenizer.decode([int(following)]).startswith(" F")


@pytest.mark.parametrize("load", LOADERS)
def test_unknown_argument_is_refused_with_a_list_of_known_ones(load: Any, checkpoint: Path) -> None:
    with pytest.raises(
        UsageError, match=r"has no argument delta, device in model_args; known arguments: .*dtype.*peft.*revision"
    ):
        load(str(checkpoint), delta="x", device="cuda", dtype="float32")


@pytest.mark.parametrize("name", ["max_model_len", "context_length"])
def test_maximum_length_may_have_the_name_of_another_backend(
    name: str, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_model(str(checkpoint), **{name: 8}).max_length == 8
    assert load_model(str(checkpoint), **{name: 8}, max_length=8).max_length == 16  # the engine reads max_length
    assert not caplog.records
    assert load_model(str(checkpoint), **{name: 17}).max_length == 17
    assert "a max_length of 17 exceeds the model's own max_length of 16 tokens" in caplog.text
    with pytest.raises(UsageError, match=rf"max_length and {name} in model_args contradict each other"):
        load_model(str(checkpoint), **{name: 8}, max_length=9)
    with pytest.raises(UsageError, match=rf"{name}=0 in model_args must be a whole number above 0"):
        load_model(str(checkpoint), **{name: 0})


def test_sizes_of_other_backends_need_a_mesh_of_these_sizes(checkpoint: Path) -> None:
    load_model(str(checkpoint), tensor_parallel_size=1, dp_size=1)
    with pytest.raises(UsageError, match="tp_size in model_args: write mesh=data:1/model:2 instead"):
        load_model(str(checkpoint), tp_size=2)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("dtype", ["float16", "int8", "Float32", None])
def test_other_dtypes_are_refused(load: Any, dtype: object, checkpoint: Path) -> None:
    with pytest.raises(
        UsageError, match=f"dtype='{dtype}' in model_args is not supported; use one of auto, float32, bfloat16"
    ):
        load(str(checkpoint), dtype=dtype)


@pytest.mark.parametrize("load", LOADERS)
def test_other_softmax_dtypes_are_refused(load: Any, checkpoint: Path) -> None:
    assert load(str(checkpoint), softmax_dtype="float32") is not None
    with pytest.raises(UsageError, match="softmax_dtype='bfloat16'"):
        load(str(checkpoint), softmax_dtype="bfloat16")


@pytest.mark.parametrize("load", LOADERS)
def test_arguments_of_the_engine_and_of_lm_evals_hf_backend_are_accepted(load: Any, checkpoint: Path) -> None:
    keywords = {"max_length": 8, "max_gen_toks": 4, "add_bos_token": True, "seed": 1, "trust_remote_code": True}
    assert load(str(checkpoint), **keywords) is not None


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", "bfloat16"), ("float32", "float32"), ("auto", "float32")])
def test_dtype_argument_sets_the_dtype_in_memory(checkpoint: Path, dtype: str, expected: str) -> None:
    params = load_model(str(checkpoint), dtype=dtype).params
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {expected}


@pytest.mark.parametrize("load", LOADERS)
def test_unknown_tag_is_refused(load: Any, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelTag, match="none_such"):
        load(str(tmp_path / "none_such"))


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_damaged_checkpoint_raises_a_load_error_with_the_file_name(checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_text("{")
    with pytest.raises(ModelLoadError, match=name):
        load_model(str(checkpoint))


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_missing_file_raises_a_load_error_with_its_name(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(ModelLoadError, match=name):
        load_model(str(checkpoint))


@pytest.mark.parametrize("content", [b"no GGUF", b"GGUF\x03\0\0\0"])
@pytest.mark.parametrize(("load", "error"), [(load_model, ModelLoadError), (load_tokenizer, TokenizerError)])
def test_damaged_gguf_file_is_refused_with_its_name(
    tmp_path: Path, load: Any, error: type[Exception], content: bytes
) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(error, match=r"m\.gguf"):
        load(str(tmp_path / "m.gguf"))


def test_missing_tokenizer_raises_a_tokenizer_error(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"there is no tokenizer in .*tokenizer\.json"):
        load_tokenizer(str(checkpoint))


@pytest.mark.parametrize(("add_bos_token", "expected"), [(True, [1, 2]), (False, [2])])
def test_add_bos_token_reaches_the_tokenizer(checkpoint: Path, add_bos_token: bool, expected: list[int]) -> None:
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"bos_token": "b"}), encoding="utf-8")
    assert load_tokenizer(str(checkpoint), add_bos_token=add_bos_token).encode("c") == expected


def test_tokenizer_of_another_directory_is_used(checkpoint: Path, tmp_path: Path) -> None:
    other = add_tokenizer(tmp_path / "other", ["c", "b", "a"])
    assert load_tokenizer(str(checkpoint), tokenizer=str(other)).encode("c") == [0]


def test_checkpoint_in_a_subfolder_is_loaded(checkpoint: Path) -> None:
    whole = load_tokenizer(str(checkpoint))
    inside = load_tokenizer(str(checkpoint.parent), subfolder=checkpoint.name)

    assert (inside.encode("c"), inside.fingerprint) == (whole.encode("c"), whole.fingerprint)
    assert (
        load_model(str(checkpoint.parent), subfolder=checkpoint.name).fingerprint
        == load_model(str(checkpoint)).fingerprint
    )


def test_tokenizer_revision_selects_the_tokenizer_of_a_hub_repository(
    checkpoint: Path, cached: dict[str, Path]
) -> None:
    add_tokenizer(cached["main"], ["a", "b", "c"])
    add_tokenizer(cached["older"], ["c", "b", "a"])

    assert load_tokenizer("acme/tiny").encode("c") == [2]
    assert load_tokenizer("acme/tiny", tokenizer_revision="older").encode("c") == [0]
    assert load_tokenizer(str(checkpoint), tokenizer="acme/tiny", tokenizer_revision="older").encode("c") == [0]


def test_tokenizer_of_a_missing_directory_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelTag, match="none_such"):
        load_tokenizer(str(checkpoint), tokenizer=str(tmp_path / "none_such"))


def fingerprints(tag: str, **keywords: Any) -> tuple[str | None, str | None, str | None]:
    """Return the fingerprints of a tag: of its model, its tokenizer, and its checkpoint as the tokenizer knows it."""
    tokenizer = load_tokenizer(tag, **keywords)
    return load_model(tag, **keywords).fingerprint, tokenizer.fingerprint, tokenizer.checkpoint_fingerprint


def test_fingerprints_change_with_the_model(checkpoint: Path) -> None:
    before = fingerprints(str(checkpoint))
    assert None not in before
    assert before[0] == before[2]
    (checkpoint / "README.md").write_text("About this model.")
    assert fingerprints(str(checkpoint)) == before
    values = json.loads((checkpoint / CONFIG_FILE).read_text(encoding="utf-8")) | {"another": "key"}
    (checkpoint / CONFIG_FILE).write_text(json.dumps(values), encoding="utf-8")
    assert not set(fingerprints(str(checkpoint))) & set(before)


def test_other_weights_change_the_fingerprints_of_the_checkpoint(checkpoint: Path) -> None:
    status = (checkpoint / WEIGHTS_FILE).stat()
    before = fingerprints(str(checkpoint))
    save_checkpoint(checkpoint, MODEL, MODEL.init_params(jax.random.key(1)))
    os.utime(checkpoint / WEIGHTS_FILE, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = fingerprints(str(checkpoint))
    assert after[1] == before[1]
    assert after[0] == after[2] != before[0]


def test_fingerprints_of_a_hub_name_do_not_depend_on_what_has_been_downloaded(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = checkpoint / WEIGHTS_FILE
    content = weights.read_bytes()
    weights.unlink()

    def download(name: str, *, allow_patterns: list[str], **_: object) -> str:
        if WEIGHTS_FILE in allow_patterns:
            weights.write_bytes(content)
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(checkpoint)
    before = fingerprints("organisation/m")
    assert weights.is_file()
    (checkpoint / "README.md").write_text("About this model.")
    assert fingerprints("organisation/m") == before
    assert before == (*fingerprints(str(checkpoint))[:2], None)

    content = content[:-1] + bytes([content[-1] ^ 1])
    assert fingerprints("organisation/m")[0] != before[0]


def test_only_the_tokenizer_files_of_another_directory_count(checkpoint: Path, tmp_path: Path) -> None:
    other = add_tokenizer(tmp_path / "other", ["c", "b", "a"])
    before = load_tokenizer(str(checkpoint), tokenizer=str(other)).fingerprint
    (other / WEIGHTS_FILE).write_bytes(b"weights of another model")
    (other / "README.md").write_text("About another model.")
    assert load_tokenizer(str(checkpoint), tokenizer=str(other)).fingerprint == before


def test_checkpoint_that_changes_while_it_is_loaded_is_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = loader.load_checkpoint

    def load_and_change(*arguments: Any) -> Any:
        loaded = loading(*arguments)
        os.utime(checkpoint / WEIGHTS_FILE, (1, 1))
        return loaded

    monkeypatch.setattr(loader, "load_checkpoint", load_and_change)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors was changed while the model was loaded"):
        load_model(str(checkpoint))


def test_changed_tokenizer_of_another_directory_changes_the_fingerprint(checkpoint: Path, tmp_path: Path) -> None:
    other = add_tokenizer(tmp_path / "other", ["c", "b", "a"])
    before = load_tokenizer(str(checkpoint), tokenizer=str(other)).fingerprint
    add_tokenizer(other, ["another", "order", "a", "b", "c"])
    assert load_tokenizer(str(checkpoint), tokenizer=str(other)).fingerprint != before


def test_adapter_is_merged_and_part_of_the_fingerprint(checkpoint: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(checkpoint)}))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    save_file(
        {f"{name}A.weight": np.ones((1, 8), np.float32), f"{name}B.weight": np.ones((8, 1), np.float32)},
        adapter / "adapter_model.safetensors",
    )

    for tag, keywords in ((checkpoint, {"peft": str(adapter)}), (adapter, {})):
        params = load_model(str(tag), **keywords).params
        np.testing.assert_allclose(params.layers[0]["query"], PARAMS.layers[0]["query"] + 2, rtol=1e-5)
        np.testing.assert_array_equal(params.layers[0]["key"], PARAMS.layers[0]["key"])
        assert load_tokenizer(str(tag), **keywords).encode("c") == [2]
        before = load_model(str(tag), **keywords).fingerprint
        assert before != load_model(str(checkpoint)).fingerprint
        assert before == load_tokenizer(str(tag), **keywords).checkpoint_fingerprint
        (adapter / "notes").write_text("about the adapter")
        assert load_model(str(tag), **keywords).fingerprint == before
        (adapter / "adapter_config.json").write_text(
            json.dumps(config | {"lora_alpha": 3, "base_model_name_or_path": str(checkpoint)})
        )
        assert load_model(str(tag), **keywords).fingerprint != before
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(checkpoint)}))


def test_adapter_that_cannot_be_merged_raises_a_load_error(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(ModelLoadError, match="peft_type 'IA3'"):
        load_model(str(checkpoint), peft=str(tmp_path))


def test_max_length_beyond_the_learned_positions_is_refused(tmp_path: Path) -> None:
    """JAX clamps an index beyond the end of an array to its last row: scores would be wrong without an error."""
    config = {"model_type": "gpt2", "vocab_size": 3, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    weight_map = build_architecture(complete_config(config), "config.json").weight_map()
    tensors = {name: np.zeros(slot.spec.shape, np.float32) for name, slot in weight_map.tensors()}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    save_file(tensors, tmp_path / WEIGHTS_FILE)

    assert load_model(str(tmp_path), max_length=16).max_length == 16
    with pytest.raises(UsageError, match="max_length=17 is more than the 16 positions of the model"):
        load_model(str(tmp_path), max_length=17)


ROPES: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 12},
    "longrope": {
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]},
        "original_max_position_embeddings": 12,
    },
}


@pytest.mark.parametrize("kind", ROPES)
def test_max_length_beyond_the_supported_positions_of_rope_is_refused(checkpoint: Path, kind: str) -> None:
    values = json.loads((checkpoint / CONFIG_FILE).read_text(encoding="utf-8")) | ROPES[kind]
    (checkpoint / CONFIG_FILE).write_text(json.dumps(values), encoding="utf-8")
    assert load_model(str(checkpoint)).max_length == 12
    assert load_model(str(checkpoint), max_length=12).max_length == 12
    with pytest.raises(
        UsageError, match=r"max_length=13 is more than the 12 positions of the model .*; lower max_length"
    ):
        load_model(str(checkpoint), max_length=13)


def test_max_length_beyond_that_of_a_model_without_a_limit_is_accepted(checkpoint: Path) -> None:
    assert load_model(str(checkpoint), max_length=99).max_length == 16

"""GGUF files: row order of the weights, tokenizers, and errors that name what is not supported."""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from birdie_zmq.errors import TokenizerError
from birdie_zmq.models.gguf_file import GgufFile
from birdie_zmq.models.llama import Llama
from birdie_zmq.models.loader import load_checkpoint
from birdie_zmq.models.rope import Rope
from birdie_zmq.models.weight_map import Params
from tests.gguf_files import add_sizes, write_gguf

TEXTS = [
    "",
    " ",
    "  two  spaces ",
    "the thinking cat isn't\n\n\nthere\r\n\t",
    "In 1234567 and ٣٤ years",
    "naïve 東京 🦔\u200d\x00 e\u0301",
    "<|eos|>the<|eos|><|user|> cat <|bos|",
    "... #$%, (the)!?",
]
CORPUS = ["the thinking cat thinks that it isn't there in 1234 or 12 years, the cat; naïve 東京 then there"] * 3
MODEL = Llama(
    vocab_size=300,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_ff=64,
    max_length=48,
    tied_head=False,
    rope=Rope(8, 500.0),
)


def byte_level(pre_tokenizer: Any) -> Tokenizer:
    """Train a small byte-level BPE with two control tokens and a user-defined one."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=297,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<|user|>", special=False, normalized=False)])
    return tokenizer


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
SMOLLM = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)


def write(
    path: Path,
    model: Llama = MODEL,
    params: Params | None = None,
    tokenizer: Tokenizer | None = None,
    **keywords: Any,
) -> Path:
    return write_gguf(path, model, params or random_params(model), tokenizer or byte_level(GPT2), **keywords)


def random_params(model: Llama) -> Params:
    """Return random weights, including norms and biases."""
    params = model.init_params(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return Params(
        *jax.tree.unflatten(
            tree, [x + 0.1 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
        )
    )


@pytest.mark.parametrize(
    ("architecture", "change"),
    [
        ("llama", {}),
        ("llama", {"tied_head": True}),
        ("llama", {"qkv_bias": True, "output_bias": True}),
        ("llama", {"head_width": 16, "rope": Rope(16, 500.0)}),
        ("qwen2", {"qkv_bias": True}),
        ("qwen3", {"query_key_norm": True}),
    ],
)
def test_weights_round_trip(tmp_path: Path, architecture: str, change: dict[str, Any]) -> None:
    model = dataclasses.replace(MODEL, **change)
    params = random_params(model)
    read_model, read_params = load_checkpoint(write(tmp_path / "m.gguf", model, params, architecture=architecture))
    rounded = float(np.float32(model.norm_epsilon))  # the file holds float32
    assert read_model == dataclasses.replace(model, norm_epsilon=rounded)
    assert read_params.outer.keys() == params.outer.keys()
    assert read_params.layers.keys() == params.layers.keys()
    jax.tree.map(np.testing.assert_array_equal, read_params, params)


def test_written_rows_of_queries_and_keys_are_reordered(tmp_path: Path) -> None:
    """Otherwise the round-trip test would also pass without both permutations."""
    params = random_params(MODEL)
    reader = gguf.GGUFReader(write(tmp_path / "m.gguf", params=params))
    stored = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    query = np.asarray(params.layers["query"][0]).T
    np.testing.assert_array_equal(stored["blk.0.attn_q.weight"][[0, 1, 2]], query[[0, 4, 1]])
    np.testing.assert_array_equal(stored["blk.0.attn_v.weight"], np.asarray(params.layers["value"][0]).T)


def test_q8_0_is_dequantised_within_its_rounding_error(tmp_path: Path) -> None:
    params = random_params(MODEL)
    path = write(tmp_path / "m.gguf", params=params, kind=gguf.GGMLQuantizationType.Q8_0)
    got = load_checkpoint(path)[1]
    np.testing.assert_array_equal(got.outer["final_norm"], params.outer["final_norm"])
    for key in ("query", "key", "up", "down"):
        weights = np.asarray(params.layers[key]).swapaxes(1, 2)  # as stored: blocks of 32 along the inputs
        read = np.asarray(got.layers[key]).swapaxes(1, 2)
        largest = np.abs(weights.reshape(*weights.shape[:2], -1, 32)).max(-1, keepdims=True)
        # Half a step of 1 / 127 of the largest, and the rounding of that step to float16.
        bound = np.broadcast_to(largest * (0.5 / 127 + 2**-11), (*largest.shape[:3], 32)).reshape(weights.shape)
        error = np.abs(weights - read)
        assert (error <= bound).all()
        assert error.max() > 0


def test_dtype_of_a_gguf_file_is_float32_or_the_requested_one(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    assert {str(x.dtype) for x in jax.tree.leaves(load_checkpoint(path)[1])} == {"float32"}
    assert {str(x.dtype) for x in jax.tree.leaves(load_checkpoint(path, "bfloat16")[1])} == {"bfloat16"}


def test_rope_scaling_is_read(tmp_path: Path) -> None:
    def linear_scaling(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    model = load_checkpoint(write(tmp_path / "m.gguf", more=linear_scaling))[0]
    assert isinstance(model, Llama)
    assert model.rope == Rope(8, 500.0, "linear", 4.0)


def test_unsupported_architecture_is_refused_with_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", architecture="phi3")
    with pytest.raises(ValueError, match=r"'phi3' is not supported in GGUF files, only llama, qwen2, qwen3"):
        load_checkpoint(path)


def test_yarn_is_read(tmp_path: Path) -> None:
    def yarn(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32)

    model = load_checkpoint(write(tmp_path / "m.gguf", more=yarn))[0]
    assert isinstance(model, Llama)
    assert model.rope == Rope(8, 500.0, "yarn", 4.0, 32, 1.0, 32.0, 0.1 * math.log(4.0) + 1.0)


def add_rope_factors(factors: list[float]) -> Callable[[gguf.GGUFWriter], None]:
    return lambda writer: writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))


def test_rope_factors_divide_the_frequencies(tmp_path: Path) -> None:
    params = random_params(MODEL)
    path = write(tmp_path / "m.gguf", params=params, more=add_rope_factors([1.0, 2.0, 8.0, 8.0]))
    model, read_params = load_checkpoint(path)
    assert isinstance(model, Llama)
    assert model.rope is not None
    np.testing.assert_array_equal(model.rope.frequencies(), Rope(8, 500.0).frequencies() / np.array([1, 2, 8, 8], "f4"))
    jax.tree.map(np.testing.assert_array_equal, read_params, params)


def test_rope_factors_of_llama_3_give_its_frequencies(tmp_path: Path) -> None:
    """The converter of llama.cpp writes the quotient of the plain frequencies and those of rope_type llama3."""
    scaled = Rope(8, 500.0, "llama3", 8.0, 32, 1.0, 4.0)
    factors = (Rope(8, 500.0).frequencies() / scaled.frequencies()).tolist()
    model = load_checkpoint(write(tmp_path / "m.gguf", more=add_rope_factors(factors)))[0]
    assert isinstance(model, Llama)
    assert model.rope is not None
    np.testing.assert_allclose(model.rope.frequencies(), scaled.frequencies(), rtol=1e-6)
    assert scaled.frequencies().min() < Rope(8, 500.0).frequencies().min() / 2


def test_wrong_rope_factors_are_refused(tmp_path: Path) -> None:
    for number, factors in enumerate(([1.0] * 3, [1.0, 1.0, 0.0, 1.0])):
        with pytest.raises(ValueError, match=r"rope_freqs\.weight must be 4 numbers above 0"):
            load_checkpoint(write(tmp_path / f"{number}.gguf", more=add_rope_factors(factors)))

    def both(writer: gguf.GGUFWriter) -> None:
        add_rope_factors([1.0] * 4)(writer)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    with pytest.raises(ValueError, match=r"rope_freqs\.weight beside RoPE scaling of the type linear"):
        load_checkpoint(write(tmp_path / "both.gguf", more=both))


def test_windows_and_other_scaling_are_refused(tmp_path: Path) -> None:
    def yarn(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32)
        writer.add_rope_scaling_attn_factors(2.0)

    with pytest.raises(ValueError, match="sliding windows are not supported"):
        load_checkpoint(write(tmp_path / "w.gguf", more=lambda writer: writer.add_sliding_window(16)))
    with pytest.raises(ValueError, match=r"the key llama\.rope\.scaling\.attn_factor is not supported"):
        load_checkpoint(write(tmp_path / "y.gguf", more=yarn))
    with pytest.raises(ValueError, match="of the type longrope is not supported"):
        load_checkpoint(
            write(tmp_path / "l.gguf", more=lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE))
        )
    with pytest.raises(ValueError, match="heads of 8 dimensions with 4 rotated"):
        load_checkpoint(write(tmp_path / "p.gguf", more=lambda writer: writer.add_rope_dimension_count(4)))


def split(path: Path, count: int = 3, parts: int | None = None) -> list[Path]:
    """Split a GGUF file as llama.cpp's gguf-split does: the metadata is in the first part, the tensors in all."""
    reader = gguf.GGUFReader(path)
    paths = [path.with_name(f"{path.stem}-{number + 1:05}-of-{count:05}.gguf") for number in range(parts or count)]
    for number, part in enumerate(paths):
        writer = gguf.GGUFWriter(part, "llama")
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                kind = field.types[0]
                inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), kind, inner)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_all_parts_of_a_split_file_are_read_by_the_name_of_the_first(tmp_path: Path) -> None:
    whole = write(tmp_path / "m.gguf", more=add_rope_factors([1.0, 2.0, 8.0, 8.0]))
    model, params = load_checkpoint(whole)
    parts = split(whole)
    assert [len(gguf.GGUFReader(part).tensors) > 0 for part in parts] == [True] * 3
    read_model, read_params = load_checkpoint(parts[0])
    assert read_model == model
    jax.tree.map(np.testing.assert_array_equal, read_params, params)
    assert GgufFile(parts[0]).tokenizer().encode("the cat") == GgufFile(whole).tokenizer().encode("the cat")


def test_other_and_missing_parts_of_a_split_file_are_refused_by_name(tmp_path: Path) -> None:
    first, second, third = split(write(tmp_path / "m.gguf"))
    with pytest.raises(
        ValueError, match=rf"{second.name} is one part of a split GGUF model; name its first part, {first.name}"
    ):
        load_checkpoint(second)
    third.unlink()
    with pytest.raises(FileNotFoundError, match=f"is split into 3 parts, and there is no {third.name}"):
        load_checkpoint(first)


def test_part_of_a_split_file_under_another_name_is_refused(tmp_path: Path) -> None:
    first, second, _ = split(write(tmp_path / "m.gguf"))
    renamed = first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(ValueError, match=r"renamed\.gguf says that it is part 1 of 3.*-00001-of-00003\.gguf"):
        load_checkpoint(renamed)
    renamed.rename(first)
    first.write_bytes(second.read_bytes())
    with pytest.raises(ValueError, match="says that it is part 2 of 3"):
        load_checkpoint(first)


def test_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", more=lambda writer: writer.add_expert_count(8))
    with pytest.raises(ValueError, match="mixtures of experts"):
        load_checkpoint(path)


def test_unused_tensor_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", more=lambda writer: writer.add_tensor("blk.0.odd.weight", np.ones(4, "f4")))
    with pytest.raises(ValueError, match=r"blk\.0\.odd\.weight"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "key", ["context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"]
)
def test_missing_key_is_refused_with_its_name(tmp_path: Path, key: str) -> None:
    def without(writer: gguf.GGUFWriter, model: Llama) -> None:
        add_sizes(writer, model)
        del writer.kv_data[0][f"llama.{key}"]

    with pytest.raises(ValueError, match=re.escape(f"has no key llama.{key}")):
        load_checkpoint(write(tmp_path / "m.gguf", sizes=without))


@pytest.mark.parametrize("content", [b"", b"GG", b"no GGUF file at all", b"GGUF"])
def test_file_that_is_not_gguf_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.gguf is not a complete GGUF file"):
        GgufFile(path)


@pytest.mark.parametrize("kept", [20, 24, 34, 0.01, 0.3, 0.9])
def test_truncated_gguf_is_refused_with_its_name(tmp_path: Path, kept: float) -> None:
    path = write(tmp_path / "m.gguf")
    complete = path.read_bytes()
    path.write_bytes(complete[: int(kept if kept > 1 else kept * len(complete))])
    with pytest.raises(ValueError, match=r"m\.gguf"):
        load_checkpoint(path)


@pytest.mark.parametrize(("pre", "pre_tokenizer"), [("gpt-2", GPT2), ("smollm", SMOLLM)], ids=["gpt-2", "smollm"])
def test_tokenizer_matches_the_original(tmp_path: Path, pre: str, pre_tokenizer: Any) -> None:
    original = byte_level(pre_tokenizer)
    tokenizer = GgufFile(write(tmp_path / "m.gguf", pre=pre, tokenizer=original)).tokenizer("print")
    for text in TEXTS:
        assert tokenizer.encode(text) == original.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("the thinking cat")) < 6  # merges are used
    assert tokenizer.decode(tokenizer.encode("<|eos|>a<|user|>"), skip_special_tokens=True) == "a<|user|>"
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|bos|>", 0)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|eos|>", 1)
    assert tokenizer.fingerprint == "print"


def test_flags_and_template_of_the_tokenizer_are_read(tmp_path: Path) -> None:
    def more(writer: gguf.GGUFWriter) -> None:
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(True)
        writer.add_chat_template("{{ messages }}")

    tokenizer = GgufFile(write(tmp_path / "m.gguf", more=more)).tokenizer()
    inner = tokenizer.encode("cat", add_special_tokens=False)
    assert tokenizer.encode("cat") == [0, *inner, 1]
    assert tokenizer.chat_template == "{{ messages }}"


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_unknown_pre_tokenizer_is_refused_with_its_name(tmp_path: Path, pre: str) -> None:
    path = write(tmp_path / "m.gguf", pre=pre)
    with pytest.raises(TokenizerError, match=f"gpt2/{pre} is not supported.*tokenizer=DIRECTORY"):
        GgufFile(path).tokenizer()

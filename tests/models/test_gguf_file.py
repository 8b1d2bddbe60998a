"""GGUF files: quantised weights, split files, and errors that name what is missing or damaged."""

import re
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest

from birdie_zmq.models.gguf_file import GgufFile
from birdie_zmq.models.loader import load_checkpoint
from birdie_zmq.models.weights import stored_tensors
from tests.gguf_files import close
from tests.gguf_models import RandomModel, add_rope_factors, random_model


@pytest.fixture
def model() -> RandomModel:
    return random_model()


def test_weights_are_loaded(tmp_path: Path, model: RandomModel) -> None:
    architecture, params = load_checkpoint(model.write(tmp_path / "m.gguf"))
    assert architecture == model.architecture
    read = stored_tensors(architecture.weight_map(), params)
    assert read.keys() == model.tensors.keys()
    jax.tree.map(np.testing.assert_array_equal, read, model.tensors)


def test_q8_0_is_dequantised_within_its_rounding_error(tmp_path: Path, model: RandomModel) -> None:
    path = model.write(tmp_path / "m.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    architecture, params = load_checkpoint(path)
    read = stored_tensors(architecture.weight_map(), params)
    np.testing.assert_array_equal(read["model.norm.weight"], model.tensors["model.norm.weight"])
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj"):
        weights, got = (tensors[f"model.layers.1.{name}.weight"] for tensors in (model.tensors, read))
        largest = np.abs(weights.reshape(weights.shape[0], -1, 32)).max(-1, keepdims=True)
        # Half a step of 1 / 127 of the largest, and the rounding of that step to float16.
        bound = np.broadcast_to(largest * (0.5 / 127 + 2**-11), (*largest.shape[:2], 32)).reshape(weights.shape)
        error = np.abs(weights - got)
        assert (error <= bound).all()
        assert error.max() > 0


def test_dtype_of_a_gguf_file_is_float32_or_the_requested_one(tmp_path: Path, model: RandomModel) -> None:
    path = model.write(tmp_path / "m.gguf")
    assert {str(x.dtype) for x in jax.tree.leaves(load_checkpoint(path)[1])} == {"float32"}
    assert {str(x.dtype) for x in jax.tree.leaves(load_checkpoint(path, "bfloat16")[1])} == {"bfloat16"}


def test_unsupported_architecture_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    close(gguf.GGUFWriter(path, "mamba"))
    with pytest.raises(ValueError, match=r"'mamba' is not supported in GGUF files, only llama, qwen2, qwen3"):
        load_checkpoint(path)


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
        close(writer)
    return paths


def test_all_parts_of_a_split_file_are_read_by_the_name_of_the_first(tmp_path: Path, model: RandomModel) -> None:
    whole = model.write(tmp_path / "m.gguf", more=add_rope_factors([1.0, 2.0, 8.0, 8.0]))
    architecture, params = load_checkpoint(whole)
    parts = split(whole)
    assert [len(gguf.GGUFReader(part).tensors) > 0 for part in parts] == [True] * 3
    read_architecture, read_params = load_checkpoint(parts[0])
    assert read_architecture == architecture
    jax.tree.map(np.testing.assert_array_equal, read_params, params)
    assert GgufFile(parts[0]).tokenizer().encode("the cat") == GgufFile(whole).tokenizer().encode("the cat")


def test_other_and_missing_parts_of_a_split_file_are_refused_by_name(tmp_path: Path, model: RandomModel) -> None:
    first, second, third = split(model.write(tmp_path / "m.gguf"))
    with pytest.raises(
        ValueError, match=rf"{second.name} is one part of a split GGUF model; name its first part, {first.name}"
    ):
        load_checkpoint(second)
    third.unlink()
    with pytest.raises(FileNotFoundError, match=f"is split into 3 parts, and there is no {third.name}"):
        load_checkpoint(first)


def test_part_of_a_split_file_under_another_name_is_refused(tmp_path: Path, model: RandomModel) -> None:
    first, second, _ = split(model.write(tmp_path / "m.gguf"))
    renamed = first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(ValueError, match=r"renamed\.gguf says that it is part 1 of 3.*-00001-of-00003\.gguf"):
        load_checkpoint(renamed)
    renamed.rename(first)
    first.write_bytes(second.read_bytes())
    with pytest.raises(ValueError, match="says that it is part 2 of 3"):
        load_checkpoint(first)


def test_unused_tensor_is_refused(tmp_path: Path, model: RandomModel) -> None:
    path = model.write(tmp_path / "m.gguf", more=lambda writer: writer.add_tensor("blk.0.odd.weight", np.ones(4, "f4")))
    with pytest.raises(ValueError, match=r"blk\.0\.odd\.weight, which this architecture does not use"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "key", ["context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"]
)
def test_missing_key_is_refused_with_its_name(tmp_path: Path, model: RandomModel, key: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"m.gguf has no key llama.{key}")):
        load_checkpoint(model.write(tmp_path / "m.gguf", omit=(f"llama.{key}",)))


def test_missing_embedding_is_refused_with_its_name(tmp_path: Path, model: RandomModel) -> None:
    del model.tensors["model.embed_tokens.weight"]
    with pytest.raises(ValueError, match=r"m\.gguf lacks the tensor token_embd\.weight"):
        load_checkpoint(model.write(tmp_path / "m.gguf"))


@pytest.mark.parametrize("content", [b"", b"GG", b"no GGUF file at all", b"GGUF"])
def test_file_that_is_not_gguf_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.gguf is not a complete GGUF file"):
        GgufFile(path)


@pytest.mark.parametrize("kept", [20, 24, 34, 0.01, 0.3, 0.9])
def test_truncated_gguf_is_refused_with_its_name(tmp_path: Path, model: RandomModel, kept: float) -> None:
    path = model.write(tmp_path / "m.gguf")
    complete = path.read_bytes()
    path.write_bytes(complete[: int(kept if kept > 1 else kept * len(complete))])
    with pytest.raises(ValueError, match=r"m\.gguf"):
        load_checkpoint(path)

"""Every architecture of GGUF files: its configuration and its weights are those of the Hugging Face checkpoint."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config import complete_config
from birdie_zmq.models.gguf_architectures import ARCHITECTURES
from birdie_zmq.models.gguf_file import GgufFile
from birdie_zmq.models.registry import build_architecture
from birdie_zmq.models.rope import Rope
from tests.gguf_configs import MODELS, YARN
from tests.gguf_files import llama_cpp_name
from tests.gguf_models import add_rope_factors, random_model


def test_every_architecture_is_tested() -> None:
    assert {llama_cpp_name(values) for values in MODELS.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", MODELS)
def test_config_and_weights_round_trip(tmp_path: Path, name: str) -> None:
    model = random_model(**MODELS[name])
    file = GgufFile(model.write(tmp_path / "m.gguf"))
    architecture = build_architecture(complete_config(file.config()), "m.gguf")
    assert architecture == model.architecture
    read = {name: read() for name, read in file.source(architecture.weight_map()).read()}
    assert read.keys() == model.tensors.keys()
    for tensor, values in read.items():  # norms are stored plus one, which rounds
        np.testing.assert_allclose(values, model.tensors[tensor], rtol=0, atol=5e-7, err_msg=tensor)


@pytest.mark.parametrize(
    "name", ["llama", "llama biases", "gemma2", "gpt2", "gpt_neox", "bloom", "falcon grouped", "granite", "smollm3"]
)
def test_stored_tensors_are_changed(tmp_path: Path, name: str) -> None:
    """Otherwise the round-trip test would also pass if neither side changed them."""
    model = random_model(**MODELS[name])
    reader = gguf.GGUFReader(model.write(tmp_path / "m.gguf"))
    stored = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    changed = {
        "llama": ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"),
        "llama biases": ("blk.1.attn_k.bias", "model.layers.1.self_attn.k_proj.bias"),
        "granite": ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"),
        "smollm3": ("blk.0.attn_k.weight", "model.layers.0.self_attn.k_proj.weight"),
        "bloom": ("blk.1.attn_qkv.weight", "transformer.h.1.self_attention.query_key_value.weight"),
        "falcon grouped": ("blk.1.attn_qkv.weight", "transformer.h.1.self_attention.query_key_value.weight"),
        "gemma2": ("output_norm.weight", "model.norm.weight"),
        "gpt2": ("blk.0.ffn_up.weight", "transformer.h.0.mlp.c_fc.weight"),
        "gpt_neox": ("blk.0.attn_qkv.bias", "gpt_neox.layers.0.attention.query_key_value.bias"),
    }[name]
    assert not np.array_equal(stored[changed[0]], model.tensors[changed[1]])


def test_first_rows_of_llamas_queries_are_in_llama_cpps_order(tmp_path: Path) -> None:
    model = random_model()
    reader = gguf.GGUFReader(model.write(tmp_path / "m.gguf"))
    stored = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    layer = "model.layers.0.self_attn"
    np.testing.assert_array_equal(
        stored["blk.0.attn_q.weight"][[0, 1, 2]], model.tensors[f"{layer}.q_proj.weight"][[0, 4, 1]]
    )
    np.testing.assert_array_equal(stored["blk.0.attn_v.weight"], model.tensors[f"{layer}.v_proj.weight"])


def read(path: Path) -> Architecture:
    return build_architecture(complete_config(GgufFile(path).config()), "m.gguf")


def rope(path: Path) -> Rope:
    found = read(path).layers[0].attention.rope
    assert found is not None
    return found


def test_rope_factors_divide_the_frequencies(tmp_path: Path) -> None:
    factors = [1.0, 2.0, 8.0, 8.0]
    found = rope(random_model().write(tmp_path / "m.gguf", more=add_rope_factors(factors)))
    np.testing.assert_allclose(found.frequencies(), Rope(8, 500.0).frequencies() / np.array(factors, "f4"), rtol=2e-7)
    assert found.attention_factor == 1.0


def test_rope_factors_of_llama_3_give_its_frequencies_for_texts_of_any_length(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    model = random_model(rope_parameters=scaling)
    path = model.write(tmp_path / "m.gguf")
    original = model.architecture.layers[0].attention.rope
    assert original is not None
    np.testing.assert_allclose(rope(path).frequencies(), original.frequencies(), rtol=1e-6)
    assert original.frequencies().min() < Rope(8, 500.0).frequencies().min() / 2
    limit = read(path).position_limit
    assert limit is not None
    assert limit > 10**9


def test_wrong_rope_factors_are_refused(tmp_path: Path) -> None:
    for number, factors in enumerate(([1.0] * 3, [1.0, 1.0, 0.0, 1.0])):
        with pytest.raises(ValueError, match=r"rope_freqs\.weight must be 4 numbers above 0"):
            read(random_model().write(tmp_path / f"{number}.gguf", more=add_rope_factors(factors)))

    def both(writer: gguf.GGUFWriter) -> None:
        add_rope_factors([1.0] * 4)(writer)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    with pytest.raises(ValueError, match=r"rope_freqs\.weight beside RoPE scaling of the type linear"):
        read(random_model().write(tmp_path / "both.gguf", more=both))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (lambda writer: writer.add_sliding_window(16), r"llama\.attention\.sliding_window=16 is not supported"),
        (lambda writer: writer.add_clamp_kqv(8.0), r"llama\.attention\.clamp_kqv=8\.0 is not supported"),
        (lambda writer: writer.add_causal_attention(False), r"llama\.attention\.causal=False is not supported"),
        (lambda writer: writer.add_rope_dimension_count(4), "heads of 8 dimensions with 4 rotated"),
        (lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), "of the type longrope is not"),
        (lambda writer: writer.add_rope_scaling_attn_factors(2.0), r"llama\.rope\.scaling\.attn_factor=2\.0 is not"),
        (lambda writer: writer.add_head_count_kv([2, 1]), r"llama\.attention\.head_count_kv must be an integer, not"),
        (lambda writer: writer.add_expert_count(8), "mixtures of experts"),
    ],
)
def test_unsupported_keys_are_refused_by_name(tmp_path: Path, more: Any, message: str) -> None:
    path = random_model().write(tmp_path / "m.gguf", omit=("llama.rope.dimension_count",), more=more)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_keys_that_mean_none_are_accepted(tmp_path: Path) -> None:
    def more(writer: gguf.GGUFWriter) -> None:
        writer.add_sliding_window(0)
        writer.add_expert_count(0)
        writer.add_causal_attention(True)
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)

    model = random_model()
    assert read(model.write(tmp_path / "m.gguf", more=more)) == model.architecture


def test_mistral_3_without_temperature_is_a_mistral(tmp_path: Path) -> None:
    model = random_model(**MODELS["ministral3"])
    omitted = ("mistral3.attention.temperature_scale", "mistral3.rope.scaling.yarn_log_multiplier")
    found = read(model.write(tmp_path / "m.gguf", omit=omitted))
    expected = random_model(**MODELS["ministral3"] | {"model_type": "mistral", "rope_parameters": YARN})
    assert found == expected.architecture


def test_other_temperatures_of_mistral_3_are_refused(tmp_path: Path) -> None:
    rope = MODELS["ministral3"]["rope_parameters"] | {"mscale_all_dim": 0.5}
    path = random_model(**MODELS["ministral3"] | {"rope_parameters": rope}).write(tmp_path / "m.gguf")
    with pytest.raises(ValueError, match=r"mistral3\.attention\.temperature_scale is only supported with YaRN"):
        read(path)


def test_falcon_2_without_its_base_of_the_rotary_embedding_is_refused(tmp_path: Path) -> None:
    grouped = {**MODELS["falcon grouped"], "num_ln_in_parallel_attn": 1}
    with pytest.raises(ValueError, match=r"has no key falcon\.rope\.freq_base"):
        read(random_model(**grouped).write(tmp_path / "m.gguf"))
    rope = {"rope_type": "default", "rope_theta": 500.0}
    model = random_model(**grouped, rope_parameters=rope)
    path = model.write(tmp_path / "b.gguf", more=lambda writer: writer.add_rope_freq_base(500.0))
    assert read(path) == model.architecture


def test_factors_of_gemma_4_must_be_ones_and_then_zero_frequencies(tmp_path: Path) -> None:
    model = random_model(**MODELS["gemma4"])
    for number, factors in enumerate(([1.0, 2.0, 1e30], [1e30, 1.0])):

        def replace(writer: gguf.GGUFWriter, factors: list[float] = factors) -> None:
            del writer.tensors[0]["rope_freqs.weight"]
            add_rope_factors(factors)(writer)

        with pytest.raises(ValueError, match=r"rope_freqs\.weight must be ones and then numbers above"):
            read(model.write(tmp_path / f"{number}.gguf", more=replace))


def test_other_widths_of_gemma_4_are_refused(tmp_path: Path) -> None:
    widths = [64, 64, 64, 64, 96, 96]
    path = random_model(**MODELS["gemma4"]).write(
        tmp_path / "m.gguf",
        omit=("gemma4.feed_forward_length",),
        more=lambda writer: writer.add_feed_forward_length(widths),
    )
    with pytest.raises(ValueError, match=r"gemma4\.feed_forward_length=\[64, 64, 64, 64, 96, 96\] is not supported"):
        read(path)


def test_number_of_values_for_layers_is_checked(tmp_path: Path) -> None:
    path = random_model(**MODELS["gemma3n"]).write(
        tmp_path / "m.gguf",
        omit=("gemma3n.feed_forward_length",),
        more=lambda writer: writer.add_feed_forward_length([64, 96]),
    )
    with pytest.raises(ValueError, match=r"gemma3n\.feed_forward_length has 2 values for 7 layers"):
        read(path)


def test_granite_without_positions_is_refused(tmp_path: Path) -> None:
    path = random_model(**MODELS["granite"]).write(
        tmp_path / "m.gguf", more=lambda writer: writer.add_bool("granite.rope.scaling.finetuned", False)
    )
    with pytest.raises(ValueError, match=r"granite\.rope\.scaling\.finetuned=False"):
        read(path)


def test_pattern_of_windows_may_be_a_list_or_a_period(tmp_path: Path) -> None:
    values = MODELS["gemma2"] | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
    listed = random_model(**values)
    pattern = [False, True, False]
    path = listed.write(tmp_path / "l.gguf", more=lambda writer: writer.add_sliding_window_pattern(pattern))
    assert read(path) == listed.architecture
    period = random_model(**{**values, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]})
    path = period.write(
        tmp_path / "p.gguf", more=lambda writer: writer.add_uint32("gemma2.attention.sliding_window_pattern", 3)
    )
    assert read(path) == period.architecture
    path = listed.write(tmp_path / "w.gguf", more=lambda writer: writer.add_sliding_window_pattern(pattern[:2]))
    with pytest.raises(ValueError, match=r"gemma2\.attention\.sliding_window_pattern has 2 values for 3 layers"):
        read(path)


def test_partly_rotated_heads_keep_their_number_of_dimensions(tmp_path: Path) -> None:
    """30 of 44 dimensions as a share is a little less than 30 when it is multiplied again."""
    assert int(44 * (30 / 44)) == 29
    values = MODELS["gpt_neox sequential"] | {"hidden_size": 4 * 44}
    path = random_model(**values).write(
        tmp_path / "m.gguf",
        omit=("gptneox.rope.dimension_count",),
        more=lambda writer: writer.add_rope_dimension_count(30),
    )
    assert rope(path).width == 30

"""The functions of a Model for a small random decoder of every family: all of them compute the same hidden states.

tests/parity compares the forward pass of whole texts with transformers.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from birdie_zmq.engine.model_api import Model, resolve
from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.attention import Target, blockwise
from birdie_zmq.models.config import complete_config
from birdie_zmq.models.decoder import branch, build_model, extend, extend_after, hidden, init_state, logits, unembed
from birdie_zmq.models.registry import FAMILIES, build_architecture
from birdie_zmq.models.weight_map import Params

VOCABULARY = 40
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 8}
WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
DELTA_RULE = {
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 5,
    "linear_value_head_dim": 3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, "num_key_value_heads": 1},
    "mistral": {**SIZES, "sliding_window": 5},
    "ministral": {**SIZES, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen2": {**SIZES, **WINDOWS, "rope_parameters": YARN},
    "ministral3": {**SIZES, "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.5}},
    "qwen3": {**SIZES, **WINDOWS},
    "smollm3": {**SIZES, "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 5},
    "granite": {
        **SIZES,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.7,
        "residual_multiplier": 0.6,
        "logits_scaling": 2.0,
    },
    "olmo2": {**SIZES, "num_key_value_heads": 4},
    "olmo3": {
        **SIZES,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}},
    },
    "exaone4": {**SIZES, "sliding_window": 5, "sliding_window_pattern": 2},
    "mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5},
    "olmoe": {**SIZES, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**SIZES, **EXPERTS, "mlp_only_layers": [0], "shared_expert_intermediate_size": 12},
    "qwen3_moe": {**SIZES, **EXPERTS, "norm_topk_prob": True},
    "gpt_oss": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5},
    "deepseek_v3": {
        **SIZES,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 6,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 5,
        "v_head_dim": 3,
    },
    "llama4_text": {
        **SIZES,
        "num_local_experts": 4,
        "intermediate_size_mlp": 20,
        "interleave_moe_layer_step": 2,
        "no_rope_layer_interval": 2,
        "floor_scale": 4,
    },
    "falcon_h1": {
        **SIZES,
        "mamba_d_ssm": 24,
        "mamba_n_heads": 4,
        "mamba_n_groups": 2,
        "mamba_d_state": 5,
        "mamba_rms_norm": True,
        "key_multiplier": 0.7,
        "ssm_multipliers": [0.7, 1.1, 0.8, 1.2, 0.9],
    },
    "mamba": {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 5},
    "mamba2": {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_heads": 4,
        "head_dim": 8,
        "n_groups": 2,
        "state_size": 5,
        "use_bias": True,
    },
    "lfm2": {
        **{key: value for key, value in SIZES.items() if key != "head_dim"},
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "block_multiple_of": 4,
        "conv_bias": True,
    },
    "qwen3_next": {
        **SIZES,
        **EXPERTS,
        **DELTA_RULE,
        "mlp_only_layers": [1],
        "shared_expert_intermediate_size": 12,
    },
    "qwen3_5_text": {**SIZES, **DELTA_RULE},
    "qwen3_5_moe_text": {**SIZES, **EXPERTS, **DELTA_RULE, "shared_expert_intermediate_size": 12},
    "recurrent_gemma": {
        **SIZES,
        "num_hidden_layers": 3,
        "head_dim": 4,
        "attention_window_size": 5,
    },
    "gemma": {**SIZES, "num_key_value_heads": 1},
    "gemma2": {
        **SIZES,
        "sliding_window": 5,
        "query_pre_attn_scalar": 6,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 2.0,
    },
    "gemma3_text": {**SIZES, "sliding_window": 5, "sliding_window_pattern": 2, "query_pre_attn_scalar": 6},
    "gemma3n_text": {
        **SIZES,
        "num_hidden_layers": 5,
        "sliding_window": 5,
        "layer_types": [
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "sliding_attention",
            "full_attention",
        ],
        "num_kv_shared_layers": 3,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 4,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0, 0.0],
        "laurel_rank": 4,
    },
    "gemma4_text": {
        **SIZES,
        "num_hidden_layers": 5,
        "sliding_window": 5,
        "layer_types": [
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "sliding_attention",
            "full_attention",
        ],
        "global_head_dim": 8,
        "num_kv_shared_layers": 3,
        "use_double_wide_mlp": True,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 4,
    },
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "scale_attn_by_inverse_layer_idx": True,
    },
    "gpt_neox": {**SIZES, "rotary_pct": 0.5},
    "phi3": {**SIZES, "sliding_window": 5, "partial_rotary_factor": 0.75},
    "phi": {**SIZES, "qk_layernorm": True, "partial_rotary_factor": 0.4},
    "glm": {**SIZES, "head_dim": 8},
    "glm4": {**SIZES, "head_dim": 8},
    "cohere": {**SIZES, "use_qk_norm": True, "attention_bias": True},
    "cohere2": {**SIZES, "num_hidden_layers": 3, "sliding_window": 5, "sliding_window_pattern": 2, "logit_scale": 0.5},
    "starcoder2": {**SIZES, "sliding_window": 5},
    "stablelm": {**SIZES, "qk_layernorm": True, "use_parallel_residual": True, "partial_rotary_factor": 0.7},
    "gptj": {
        "vocab_size": VOCABULARY,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        "rotary_dim": 6,
    },
    "opt": {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "max_position_embeddings": 64,
        "do_layer_norm_before": False,
        "word_embed_proj_dim": 12,
    },
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 4},
    "falcon": {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "alibi": True,
        "bias": True,
    },
}
ALIKE = {
    *("mistral", "ministral", "granite", "olmo2", "exaone4", "gemma", "gemma3_text", "gpt_neox"),
    *("phi3", "phi", "glm", "glm4", "cohere", "starcoder2", "falcon"),
}
"""Families that combine norms, positions, windows and caches of others here, tested by `tox -e parity` only."""
BESIDE_OTHERS = {
    *("olmoe", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v3", "llama4_text", "falcon_h1", "mamba"),
    *("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "recurrent_gemma"),
}
"""Families like Mixtral or Mamba 2, which are tested: `tox -e parity` tests them, and `tox -e tests` need not."""
RECURRENT = {"falcon_h1", "mamba", "mamba2", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "recurrent_gemma"}
"""Families with a recurrence, which compute no trees."""


def _family(kind: str) -> Any:
    return pytest.param(kind, marks=[pytest.mark.parity, pytest.mark.variant] if kind in ALIKE | BESIDE_OTHERS else ())


EVERY_FAMILY = pytest.mark.parametrize("kind", [_family(kind) for kind in CONFIGS])
WITH_TREES = pytest.mark.parametrize("kind", [_family(kind) for kind in CONFIGS if kind not in RECURRENT])

CLOSE = 2e-5
"""Tolerance between hidden states of executables that sum in different orders."""


@pytest.fixture(autouse=True)
def strict_jax() -> Iterator[None]:
    """Forbid implicit promotion of dtypes and ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let short texts fill several blocks."""
    monkeypatch.setattr(blockwise, "QUERY_BLOCK", 8)
    monkeypatch.setattr(blockwise, "STATE_BLOCK", 8)


def architecture(kind: str, **change: Any) -> Architecture:
    return build_architecture(complete_config({"model_type": kind, **CONFIGS[kind], **change}), "config.json")


def random_params(architecture: Architecture, dtype: str = "float32") -> Params:
    """Return random weights such that every part matters and attention is far from uniform."""
    weight_map, generator = architecture.weight_map(), np.random.default_rng(0)

    def sample(name: str, shape: tuple[int, ...], stack: tuple[int, ...]) -> jax.Array:
        array = generator.standard_normal((*stack, *shape))
        if len(shape) == 1 or "norm" in name:
            array = (1.0 if name.endswith(("norm", "scale")) else 0.0) + 0.3 * array
        elif name not in ("embedding", "positions"):
            array *= (2.0 if name in ("query", "key", "query_key_value") else 1.0) * shape[0] ** -0.5
        return jnp.asarray(array, dtype)

    return Params(
        {name: sample(name, spec.loaded_shape, ()) for name, spec in weight_map.outer.items()},
        tuple(
            {name: sample(name, spec.loaded_shape, (len(stack.layers),)) for name, spec in stack.specs.items()}
            for stack in weight_map.stacks
        ),
    )


def jitted(function: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return a function of a model, jitted as engines do."""
    assert function is not None
    return jax.jit(function)


@functools.cache
def build_functions(kind: str) -> tuple[Model, Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Return a model and its jitted hidden, extend and branch. Each compiles once for all tests of this file."""
    chosen = architecture(kind)
    model = build_model(chosen, random_params(chosen))
    return model, jitted(model.hidden), jitted(model.extend), jitted(model.branch or _no_trees)


def _no_trees(*_: Any) -> Any:
    raise AssertionError("a model with a recurrence computes no trees")


def tokens_of(*shape: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape, np.int32)


class Tree:
    """The prefix tree of texts in one row, as `Model.branch` takes it: texts share the tokens of their common prefix."""

    def __init__(self, texts: list[list[int]]) -> None:
        self.tokens: list[int] = []
        self.depths: list[int] = []
        self.ends: list[int] = []
        self.paths: list[list[int]] = []
        self._lay_out([(text, number) for number, text in enumerate(texts)], [[] for _ in texts], 0)

    def _lay_out(self, texts: list[tuple[list[int], int]], paths: list[list[int]], depth: int) -> None:
        for token in dict.fromkeys(text[depth] for text, _ in texts if len(text) > depth):
            index = len(self.tokens)
            self.tokens.append(token)
            self.depths.append(depth)
            self.ends.append(-1)
            children = [(text, number) for text, number in texts if len(text) > depth and text[depth] == token]
            for _, number in children:
                paths[number].append(index)
            self._lay_out(children, paths, depth + 1)
            self.ends[index] = len(self.tokens)
        self.paths = paths


def to_arrays(trees: list[Tree], length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return tokens, depths and ends, int32 [b, t]; padding attends to itself."""
    arrays = np.zeros((3, len(trees), length), np.int32)
    arrays[2] = np.arange(1, length + 1)
    for row, tree in enumerate(trees):
        for array, values in zip(arrays, (tree.tokens, tree.depths, tree.ends), strict=True):
            array[row, : len(values)] = values
    tokens, depths, ends = (jnp.asarray(array) for array in arrays)
    return tokens, depths, ends


def hidden_alone(read: Callable[..., Any], params: Any, texts: list[list[int]]) -> list[NDArray[np.float32]]:
    """Return the hidden states of texts, each computed in a row of its own."""
    rows = np.zeros(ROWS, np.int32)
    for row, text in zip(rows, texts, strict=False):
        row[: len(text)] = text
    return [np.asarray(got)[: len(text)] for got, text in zip(read(params, jnp.asarray(rows)), texts, strict=False)]


ROWS = (6, 24)
"""The shape of rows for one forward pass, always the same so that it is compiled once."""

TEXTS = [
    [
        [3, 1, 4, 1, 5, 9, 2, 6],
        [3, 1, 4, 1, 5, 3, 5, 8, 9],
        [3, 1, 4, 2],
        [3, 1],  # a prefix of others
        [3, 1, 4, 2],  # the same again
        [27, 1, 8, 2, 8],  # nothing in common with the others
    ],
    [[2, 7, 1, 8, 2, 8, 1, 8, 2, 8], [2, 7, 1, 8, 2, 8, 4, 5]],
]


def test_tree_helper_matches_a_tree_written_by_hand() -> None:
    tree = Tree([[7, 8, 9], [7, 8, 1], [7, 2], [7], [5]])
    assert tree.tokens == [7, 8, 9, 1, 2, 5]
    assert tree.depths == [0, 1, 2, 2, 1, 0]
    assert tree.ends == [5, 4, 3, 4, 5, 6]
    assert tree.paths == [[0, 1, 2], [0, 1, 3], [0, 4], [0], [5]]


def test_every_family_is_tested() -> None:
    assert CONFIGS.keys() == FAMILIES.keys()


@EVERY_FAMILY
def test_extending_in_chunks_gives_the_hidden_states_of_one_pass(kind: str, small_blocks: None) -> None:
    model, hidden_fn, extend_fn, _ = build_functions(kind)
    steps = [
        (6, (6, 4, 0)),
        (6, (3, 0, 6)),
        (6, (3, 2, 1)),
        (6, (6, 6, 2)),
        (1, (1, 0, 1)),
        (1, (1, 1, 1)),
        (6, (4, 1, 6)),
    ]
    totals = np.sum([lengths for _, lengths in steps], axis=0)
    assert totals.max() == ROWS[1]
    texts = tokens_of(*ROWS)[:3]
    at_once = hidden_fn(model.params, jnp.asarray(tokens_of(*ROWS)))
    assert model.init_state is not None
    assert model.resize is not None
    state, at = model.init_state(model.params, 3, 30), np.zeros(3, int)
    for number, (width, lengths) in enumerate(steps):
        tokens = tokens_of(3, width, seed=1 + number)  # tokens that are not overwritten are padding
        for row, length in enumerate(lengths):
            tokens[row, :length] = texts[row, at[row] : at[row] + length]
        if number in (2, 5):  # larger, and then smaller
            state = model.resize(model.params, state, 50 if number == 2 else 30)
        got, state = extend_fn(model.params, jnp.asarray(tokens), jnp.array(lengths, jnp.int32), state)
        assert got.shape == (3, width, at_once.shape[-1])
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(got[row, :length], at_once[row, at[row] : at[row] + length], atol=CLOSE)
        at += lengths
        np.testing.assert_array_equal(state.lengths, at)


@pytest.mark.parametrize("kind", ["llama", "gemma4_text"])
def test_functions_for_accelerators_give_the_hidden_states_of_a_cpu(kind: str) -> None:
    on_cpu, hidden_fn, _, _ = build_functions(kind)
    model = build_model(architecture(kind), on_cpu.params, Target("gpu"))
    assert model.init_state is not None
    texts = tokens_of(*ROWS)
    shared, length = 10, ROWS[1]
    texts[1:, :shared] = texts[0, :shared]
    expected = hidden_fn(model.params, jnp.asarray(texts))
    np.testing.assert_allclose(jitted(model.hidden)(model.params, jnp.asarray(texts)), expected, atol=10 * CLOSE)
    extend_fn, after_fn = jitted(model.extend), jitted(model.extend_after)
    first, prefix = extend_fn(
        model.params,
        jnp.asarray(texts[:1, :shared]),
        jnp.array([shared], jnp.int32),
        model.init_state(model.params, 1, 60),
    )
    np.testing.assert_allclose(first, expected[:1, :shared], atol=10 * CLOSE)
    rest = jnp.asarray(texts[:, shared:])
    depths = jnp.broadcast_to(jnp.arange(length - shared, dtype=jnp.int32), rest.shape)
    ends = jnp.full(rest.shape, length - shared, jnp.int32)
    got = jitted(model.branch)(model.params, rest, depths, ends, prefix)
    np.testing.assert_allclose(got, expected[:, shared:], atol=10 * CLOSE)
    assert model.resize is not None
    state, sizes = model.init_state(model.params, len(texts), 60), jnp.full(len(texts), 7, jnp.int32)
    for begin in (shared, shared + 7):
        state = model.resize(model.params, state, 90 if begin == shared else 50)
        got, state = after_fn(model.params, jnp.asarray(texts[:, begin : begin + 7]), sizes, state, prefix)
        np.testing.assert_allclose(got, expected[:, begin : begin + 7], atol=10 * CLOSE)


@pytest.mark.parametrize(
    "kind", ["llama", "ministral3", "qwen3", "gemma2", "gemma3n_text", "gemma4_text", "gpt2", "bloom", "lfm2"]
)
def test_rows_after_one_prefix_have_the_hidden_states_of_whole_texts(kind: str, small_blocks: None) -> None:
    model, hidden_fn, extend_fn, _ = build_functions(kind)
    extend_after_fn, shared = jitted(model.extend_after), 9
    texts = tokens_of(*ROWS)[:2]
    texts[1, :shared] = texts[0, :shared]
    at_once = hidden_fn(model.params, jnp.asarray(np.concatenate([texts, texts])))[:2]
    assert model.init_state is not None
    prefix, state = (model.init_state(model.params, rows, 30) for rows in (1, 2))
    _, prefix = extend_fn(model.params, jnp.asarray(texts[:1, :shared]), jnp.array([shared], jnp.int32), prefix)
    at = np.array([shared, shared])
    for number, (width, lengths) in enumerate([(6, (6, 0)), (1, (1, 1)), (1, (0, 1)), (6, (4, 6))]):
        tokens = tokens_of(2, width, seed=1 + number)  # tokens that are not overwritten are padding
        for row, length in enumerate(lengths):
            tokens[row, :length] = texts[row, at[row] : at[row] + length]
        sizes = jnp.array(lengths, jnp.int32)
        got, state = extend_after_fn(model.params, jnp.asarray(tokens), sizes, state, prefix)
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(got[row, :length], at_once[row, at[row] : at[row] + length], atol=CLOSE)
        at += lengths
        np.testing.assert_array_equal(state.lengths, at - shared)


@WITH_TREES
def test_each_text_of_a_tree_has_the_hidden_states_of_the_text_alone(kind: str, small_blocks: None) -> None:
    model, hidden_fn, _, branch_fn = build_functions(kind)
    trees = [Tree(texts) for texts in TEXTS]
    got = branch_fn(model.params, *to_arrays(trees, 24), None)
    for row, tree in enumerate(trees):
        for path, alone in zip(tree.paths, hidden_alone(hidden_fn, model.params, TEXTS[row]), strict=True):
            np.testing.assert_allclose(got[row, np.array(path)], alone, atol=CLOSE)


@WITH_TREES
@pytest.mark.parametrize("length", [0, 11])
def test_each_text_of_a_tree_continues_the_shared_state(kind: str, length: int, small_blocks: None) -> None:
    model, hidden_fn, extend_fn, branch_fn = build_functions(kind)
    prefix = tokens_of(1, 12, seed=length)
    assert model.init_state is not None
    state = model.init_state(model.params, 1, 20)
    for begin in (0, 6) if length else ():
        tokens, real = jnp.asarray(prefix[:, begin : begin + 6]), jnp.array([min(6, length - begin)], jnp.int32)
        _, state = extend_fn(model.params, tokens, real, state)
    trees = [Tree(texts) for texts in TEXTS]
    got = branch_fn(model.params, *to_arrays(trees, 24), state)
    for row, tree in enumerate(trees):
        texts = [[*map(int, prefix[0, :length]), *text] for text in TEXTS[row]]
        for path, alone in zip(tree.paths, hidden_alone(hidden_fn, model.params, texts), strict=True):
            np.testing.assert_allclose(got[row, np.array(path)], alone[length:], atol=CLOSE)


def test_tree_can_have_more_tokens_than_gpt2_has_positions() -> None:
    positions = 10
    small = architecture("gpt2", n_positions=positions)
    params, texts = random_params(small), TEXTS[0]
    tree = Tree(texts)
    assert len(tree.tokens) > positions >= max(map(len, texts))
    got = branch(small, params, *to_arrays([tree], 18), None)

    def read(params: Params, rows: jax.Array) -> jax.Array:
        return hidden(small, params, rows[:, :positions])

    for path, alone in zip(tree.paths, hidden_alone(read, params, texts), strict=True):
        np.testing.assert_allclose(got[0, np.array(path)], alone, atol=CLOSE)
    with pytest.raises(ValueError, match="18 tokens exceed the 10 learned positions"):
        hidden(small, params, jnp.asarray(tokens_of(1, 18)))


def test_trees_of_a_recurrence_are_refused() -> None:
    chosen = architecture("mamba2")
    params, tree = random_params(chosen), to_arrays([Tree([[1, 2, 3]])], 6)
    state = init_state(chosen, params, 1, 20)
    with pytest.raises(ValueError, match="a model with a recurrence has no trees of texts"):
        branch(chosen, params, *tree, state)
    with pytest.raises(ValueError, match="a model with a recurrence has no rows after a shared prefix"):
        extend_after(chosen, params, tree[0], jnp.array([3], jnp.int32), state, state)


@EVERY_FAMILY
def test_logits_are_the_unembedded_hidden_states(kind: str) -> None:
    model, hidden_fn, _, _ = build_functions(kind)
    tokens = jnp.asarray(tokens_of(*ROWS))
    states, scores = hidden_fn(model.params, tokens), jitted(model.logits)(model.params, tokens)
    assert scores.shape == (*ROWS, VOCABULARY)
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(jitted(model.unembed)(model.params, states[:, 4]), scores[:, 4], atol=CLOSE)
    assert model.unembed_part is not None
    part = jax.jit(model.unembed_part, static_argnums=3)(model.params, states[:, 4], jnp.int32(3), 5)
    np.testing.assert_allclose(part, scores[:, 4, 3:8], atol=CLOSE)


@EVERY_FAMILY
def test_hidden_states_of_every_function_have_the_dtype_of_the_weights(kind: str) -> None:
    chosen, dtype = architecture(kind), "bfloat16"
    params, tokens, lengths = random_params(chosen, dtype), jnp.asarray(tokens_of(2, 6)), jnp.array([6, 0], jnp.int32)

    def everything(params: Params) -> Any:
        state = init_state(chosen, params, 2, 20)
        extended, after = extend(chosen, params, tokens, lengths, state)
        tree = to_arrays([Tree([[1, 2, 3]])] * 2, 6)
        in_trees = [branch(chosen, params, *tree, before) for before in (None, after) if kind not in RECURRENT]
        states = jax.tree.leaves(after.caches)
        return (hidden(chosen, params, tokens), extended, *in_trees, *states), unembed(chosen, params, extended)

    states, scores = jax.eval_shape(everything, params)
    assert {x.dtype for x in states} == {jnp.dtype(dtype)}
    assert scores.dtype == jnp.float32


@pytest.mark.parametrize(
    ("requested", "capacity"), [(1, 1), (64, 64), (65, 128), (255, 256), (256, 256), (257, 512), (513, 768)]
)
def test_capacity_of_a_state_is_rounded_up_to_whole_blocks(requested: int, capacity: int) -> None:
    assert blockwise.STATE_BLOCK == 256
    chosen = architecture("qwen3")
    state = init_state(chosen, random_params(chosen, "bfloat16"), 3, requested)
    (cache,) = state.caches
    assert cache.values.shape == (3, 2, 2, capacity, 6)
    assert cache.keys.shape == (3, 2, 2, 6, capacity)
    assert cache.keys.dtype == cache.values.dtype == jnp.bfloat16
    np.testing.assert_array_equal(state.lengths, [0, 0, 0])
    assert state.lengths.dtype == jnp.int32


@EVERY_FAMILY
def test_initial_state_has_the_shape_of_an_extended_state(kind: str) -> None:
    chosen = architecture(kind)
    params = random_params(chosen)
    state = init_state(chosen, params, 2, 7)
    tokens, lengths = jnp.asarray(tokens_of(2, 7)), jnp.array([7, 7], jnp.int32)
    _, after = jax.eval_shape(lambda *rest: extend(chosen, *rest), params, tokens, lengths, state)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    sizes = [(cache.values.shape[1], cache.values.shape[2], cache.values.shape[4]) for cache in state.caches]
    assert sizes == list(chosen.cache_sizes)
    writing = sum(layer.writes for layer in chosen.layers)
    assert sum(size.layers for size in chosen.cache_sizes) == writing


@pytest.mark.parametrize("tokens", [jnp.zeros((4,), int), jnp.zeros((1, 2, 3), int), jnp.zeros((1, 3))])
@pytest.mark.parametrize("function", [logits, hidden, extend, branch])
def test_tokens_of_wrong_rank_or_dtype_are_refused(function: Callable[..., Any], tokens: jax.Array) -> None:
    chosen = architecture("llama")
    params, row = random_params(chosen), jnp.zeros((1, 3), jnp.int32)
    rest: tuple[Any, ...] = ()
    if function is extend:
        rest = (jnp.array([3], jnp.int32), init_state(chosen, params, 1, 8))
    if function is branch:
        rest = (row, row + 3, None)
    with pytest.raises(ValueError, match=r"tokens must (be|have)"):
        function(chosen, params, tokens, *rest)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_every_matrix_product_has_full_float32_precision(kind: str) -> None:
    """GPUs and TPUs would otherwise round float32 inputs, and scores would differ from those on a CPU."""
    chosen = architecture(kind)
    params, tokens, lengths = random_params(chosen), jnp.asarray(tokens_of(1, 3)), jnp.array([3], jnp.int32)
    row, state = jnp.zeros((1, 3), jnp.int32), init_state(chosen, params, 1, 8)

    def everything() -> Any:
        extended, _ = extend(chosen, params, tokens, lengths, state)
        branches = [branch(chosen, params, tokens, row, row + 3, state)] if kind not in RECURRENT else []
        return logits(chosen, params, tokens), unembed(chosen, params, extended), branches

    jaxpr = str(jax.make_jaxpr(everything)())
    products = jaxpr.count("dot_general[")
    assert products >= (10 if kind in RECURRENT else 20)
    assert jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products


@EVERY_FAMILY
def test_model_has_every_function_and_its_sizes(kind: str) -> None:
    model, *_ = build_functions(kind)
    assert resolve(model).has_state
    assert None not in (model.logits, model.hidden)
    of_trees = (model.branch, model.prefill, model.append, model.extend_after)
    assert {function is None for function in of_trees} == {kind in RECURRENT}
    limit = None if kind in ("bloom", "mamba", "mamba2") else 64  # these configurations name no length
    assert (model.max_length, model.vocab_size) == (limit, VOCABULARY)

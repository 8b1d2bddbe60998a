"""Saves models with MaxText's own code, in an environment of MaxText: ``python -m trainers.save_maxtext FOLDER``."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
import yaml
from flax import nnx
from jax.sharding import Mesh
from maxtext import __path__ as maxtext_path
from maxtext.common import checkpointing, train_state_nnx
from maxtext.configs import pyconfig
from maxtext.layers import moe
from maxtext.utils import maxtext_utils, maxtext_utils_nnx, model_creation_utils

from .saving import TOKENS, VOCABULARY, randomised, run_all, write

_ARGUMENTS = (
    "run_name=test",
    "override_model_config=true",
    "base_emb_dim=32",
    "base_mlp_dim=64",
    "base_num_query_heads=4",
    "base_num_kv_heads=2",
    "head_dim=8",
    f"vocab_size={VOCABULARY}",
    "max_target_length=64",
    "per_device_batch_size=2",
    "dtype=float32",
    "weight_dtype=float32",
    "enable_checkpointing=false",
    "skip_jax_distributed_system=true",
    "attention=dot_product",
    "matmul_precision=highest",
    "logits_dot_in_fp32=true",
    "float32_logits=true",
    "float32_qk_product=true",
)
_WINDOW = "sliding_window_size=8"
# Products of all experts: the kernels of the sparse ones are for accelerators.
_DENSE_PRODUCTS = ("sparse_matmul=false", "megablox=false")
_MIXTRAL = (*_DENSE_PRODUCTS, "num_experts=4", "num_experts_per_tok=2", "base_moe_mlp_dim=64")
_DEEPSEEK = (
    *_DENSE_PRODUCTS,
    *("num_experts=8", "num_experts_per_tok=3", "base_moe_mlp_dim=24", "first_num_dense_layers=1"),
    *("base_num_kv_heads=4", "q_lora_rank=24", "kv_lora_rank=16"),
    *("qk_nope_head_dim=8", "qk_rope_head_dim=16", "v_head_dim=8"),
)
_GROUPS = ("n_routing_groups=4", "topk_routing_group=2")


def save(name: str, layers: int, is_scanned: bool, more: tuple[str, ...], folder: Path) -> None:
    """Save a training state as the step 3 of a run, and write the logits."""
    base = str(Path(next(iter(maxtext_path)), "configs", "base.yml"))
    folder.mkdir(parents=True)
    sizes = (f"base_num_decoder_layers={layers}", f"scan_layers={is_scanned}", f"base_output_directory={folder}")
    config = pyconfig.initialize(["", base, f"model_name={name}", *_ARGUMENTS, *sizes, *more])
    mesh = Mesh(maxtext_utils.create_device_mesh(config), config.mesh_axes)
    rngs = maxtext_utils_nnx.create_nnx_rngs(config, rng_key=jax.random.key(0))
    model = model_creation_utils.from_config(config, mesh=mesh, rngs=rngs)

    def changed(path: Any, values: Any) -> jax.Array:
        text = jax.tree_util.keystr(path)
        if "norm" in text or "bias" in text:
            return jnp.asarray(randomised(values, is_norm=True))
        array = np.asarray(values)
        new = array * np.float32(1.3)
        # Tied logits are computed with the embedding in bfloat16, whatever the settings say.
        return jnp.asarray(new.astype(jnp.bfloat16).astype(np.float32) if "embedding" in text else new)

    trained = nnx.state(model, (nnx.Param, moe.MoEBiasVar))
    nnx.update(model, jax.tree_util.tree_map_with_path(changed, trained))
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    with mesh:
        output = model(
            jnp.asarray(TOKENS), positions, decoder_segment_ids=jnp.ones_like(positions), enable_dropout=False
        )
    write(folder, output[0] if isinstance(output, tuple) else output)
    manager = checkpointing.create_orbax_checkpoint_manager(str(folder / "checkpoints"), True, False, 1)
    state = train_state_nnx.TrainStateNNX(model, nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param))
    checkpointing.save_checkpoint(manager, 3, state, config, None, True)
    checkpointing.wait_until_finished(manager)
    (folder / "config.yml").write_text(yaml.dump(dict(config.get_keys())), encoding="utf-8")


MODELS = {
    "llama 3.1 scanned": functools.partial(save, "llama3.1-8b", 3, True, ()),
    "llama 2 unscanned": functools.partial(save, "llama2-7b", 3, False, ()),
    "llama 2 tied and capped": functools.partial(
        save, "llama2-7b", 3, True, ("logits_via_embedding=true", "final_logits_soft_cap=20.0")
    ),
    "mistral scanned": functools.partial(save, "mistral-7b", 3, True, ()),
    "mixtral scanned": functools.partial(save, "mixtral-8x7b", 3, True, _MIXTRAL),
    "mixtral unscanned": functools.partial(save, "mixtral-8x7b", 2, False, _MIXTRAL),
    "deepseek 3 scanned": functools.partial(save, "deepseek3-671b", 4, True, (*_DEEPSEEK, *_GROUPS)),
    "deepseek 3 unscanned": functools.partial(save, "deepseek3-671b", 3, False, (*_DEEPSEEK, "q_lora_rank=0")),
    "gemma scanned": functools.partial(save, "gemma-2b", 3, True, ()),
    "gemma 2 scanned": functools.partial(save, "gemma2-2b", 2, True, (_WINDOW,)),
    "gemma 2 unscanned": functools.partial(save, "gemma2-2b", 2, False, (_WINDOW,)),
    "gemma 3 scanned": functools.partial(save, "gemma3-4b", 8, True, (_WINDOW, "use_multimodal=false")),
    "gemma 3 unscanned": functools.partial(save, "gemma3-4b", 7, False, (_WINDOW, "use_multimodal=false")),
    "qwen 2.5 scanned": functools.partial(save, "qwen2.5-7b", 3, True, ()),
    "qwen 3 scanned": functools.partial(save, "qwen3-0.6b", 3, True, ()),
}

if __name__ == "__main__":
    run_all(MODELS, Path(sys.argv[1]))

"""The trees of trainers, written by hand from the sources of the trainers, with the weights of Hugging Face tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
import yaml
from numpy.typing import NDArray

from tests.models.native.hugging_face import LAYER, Tensors, heads, layers_of, nested

Flat = dict[str, NDArray[Any]]


def save_orbax(path: Path, tree: Mapping[str, Any], *, use_ocdbt: bool = True) -> Path:
    """Save a tree as trainers do, and return its directory."""
    checkpointer = ocp.PyTreeCheckpointer(use_ocdbt=use_ocdbt)
    checkpointer.save(path, _as_jax(dict(tree)))
    return path


def save_step(step: Path, tree: Mapping[str, Any]) -> None:
    """Save a tree as a step of a run, with the manager of checkpoints that MaxText uses."""
    with ocp.CheckpointManager(step.parent.absolute(), item_names=("items",)) as manager:
        manager.save(int(step.name), args=ocp.args.Composite(items=ocp.args.PyTreeSave(_as_jax(dict(tree)))))
        manager.wait_until_finished()


def _as_jax(node: Any) -> Any:
    return {key: _as_jax(value) for key, value in node.items()} if isinstance(node, dict) else jnp.asarray(node)


def maxtext_settings(config: Mapping[str, Any], block: str, **more: Any) -> dict[str, Any]:
    """Return the part of MaxText's configuration that the tests need."""
    gemma = block.startswith("gemma")
    return {
        "decoder_block": block,
        "model_name": "default",
        "normalization_layer_epsilon": config["rms_norm_eps"],
        "logits_via_embedding": config["tie_word_embeddings"],
        "mlp_activations": ["gelu" if gemma else "silu", "linear"],
        "max_target_length": config["max_position_embeddings"],
        **more,
    }


def save_maxtext(run: Path, settings: Mapping[str, Any], parameters: Flat) -> Path:
    """Save a training state of MaxText as the step 10 of a run, and return the step."""
    step = run / "checkpoints" / "10"
    step.parent.mkdir(parents=True)
    (run / "config.yml").write_text(yaml.dump(dict(settings)), encoding="utf-8")
    # Stacked on the first axis, unlike parameters.
    untrained = {path: array.T for path, array in parameters.items() if path.endswith("MoeBlock_0/gate/bias")}
    trained = {path: array for path, array in parameters.items() if path not in untrained}
    state = {"params": {"params": nested(trained)}, "opt_state": {"mu": np.ones(3)}, "step": np.int32(10)}
    if untrained:
        state["nnx_aux"] = {"model": nested({**untrained, "decoder/rngs/aqt/count": np.uint32(0)})}
    save_orbax(step / "items", state)
    return step


def maxtext_parameters(config: dict[str, Any], tensors: Tensors, block: str, *, in_pairs: bool = False) -> Flat:
    """Return MaxText's parameters with unscanned layers, in one tree with ``/`` in its keys.

    Args:
        config: The Hugging Face configuration.
        tensors: The weights.
        block: The ``decoder_block``.
        in_pairs: Whether the members of rotated pairs are neighbours.
    """
    gemma, width = block.startswith("gemma"), config["head_dim"]
    embedding = tensors["model.embed_tokens.weight"]
    norm = "pre_self_attention_norm" if gemma else "pre_self_attention_layer_norm"
    flat: Flat = {
        "token_embedder/embedding": embedding * np.float32(config["hidden_size"] ** 0.5) if gemma else embedding,
        "decoder/decoder_norm/scale": tensors["model.norm.weight"] + np.float32(gemma),
    }
    if "lm_head.weight" in tensors:
        flat["decoder/logits_dense/kernel"] = tensors["lm_head.weight"].T
    norms = {
        "llama2": {norm: "input_layernorm", "post_self_attention_layer_norm": "post_attention_layernorm"},
        "gemma": {norm: "input_layernorm", "pre_ffw_norm": "post_attention_layernorm"},
        "gemma2": {
            norm: "input_layernorm",
            "post_self_attention_norm": "post_attention_layernorm",
            "pre_ffw_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
    }
    chosen = norms[{"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma2"}.get(block, "llama2")]
    scale = np.float32(1.0 if block in ("qwen2", "qwen3", "gemma3") else width**-0.5)
    for number in layers_of(config):
        of = LAYER.format(number)
        at = f"decoder/layers_{number}/"
        kind = ""
        if block == "gemma2":  # one module holds a windowed and a full layer
            at, kind = f"decoder/layers_{number // 2}/", ("_local", "_global")[number % 2]
        attention = f"{at}self_attention{kind}/"
        for name, projection in {"query": "q", "key": "k", "value": "v"}.items():
            kernel = heads(tensors[f"{of}self_attn.{projection}_proj.weight"], width)
            if in_pairs and projection != "v":
                kernel = np.stack(np.split(kernel, 2, axis=-1), axis=-1).reshape(kernel.shape)
            flat[f"{attention}{name}/kernel"] = kernel * scale if projection == "q" else kernel
            bias = tensors.get(f"{of}self_attn.{projection}_proj.bias")
            if bias is not None:
                flat[f"{attention}{name}/bias"] = bias.reshape(-1, width)
            qk_norm = tensors.get(f"{of}self_attn.{projection}_norm.weight")
            if qk_norm is not None:
                flat[f"{attention}{name}_norm/scale"] = qk_norm + np.float32(gemma)
        flat[f"{attention}out/kernel"] = tensors[f"{of}self_attn.o_proj.weight"].T.reshape(
            -1, width, config["hidden_size"]
        )
        for name, matrix in {"wi_0": "gate", "wi_1": "up", "wo": "down"}.items():
            flat[f"{at}mlp{kind}/{name}/kernel"] = tensors[f"{of}mlp.{matrix}_proj.weight"].T
        for name, stored in chosen.items():
            flat[f"{at}{name}{kind}/scale"] = tensors[f"{of}{stored}.weight"] + np.float32(gemma)
    return flat


def scanned(parameters: Flat, modules: int, period: int = 1) -> Flat:
    """Stack the layers of MaxText's parameters on the axis 1, as ``scan_layers`` does.

    Args:
        parameters: The parameters with unscanned layers.
        modules: The number of layers, or of modules that hold several.
        period: The number of layers in a scanned module: 6 for Gemma 3, whose other layers are not scanned.
    """
    stacked = {name: array for name, array in parameters.items() if "/layers_" not in name}
    count = modules // period
    for name in parameters:
        for place in range(period):
            start = f"decoder/layers_{place}/"
            if name.startswith(start):
                rest = name.removeprefix(start)
                parts = [parameters[f"decoder/layers_{place + period * index}/{rest}"] for index in range(count)]
                module = "" if period == 1 else f"layers_{place}/"
                stacked[f"decoder/layers/{module}{rest}"] = np.stack(parts, axis=1)
        for place in range(count * period, modules):
            start = f"decoder/layers_{place}/"
            if name.startswith(start):
                module = f"decoder/layers_remainder/layers_{place - count * period}/"
                stacked[module + name.removeprefix(start)] = parameters[name]
    return stacked


def gemma_parameters(config: dict[str, Any], tensors: Tensors, *, transposed: bool) -> Flat:
    """Return the parameters of google-deepmind's ``gemma``, in one tree with ``/`` in its keys."""
    width, flat = config["head_dim"], {"embedder/input_embedding": tensors["model.embed_tokens.weight"]}
    flat["final_norm/scale"] = tensors["model.norm.weight"]
    norms = {"pre_attention_norm": "input_layernorm", "pre_ffw_norm": "post_attention_layernorm"}
    if config["model_type"] != "gemma":
        norms |= {"post_attention_norm": "post_attention_layernorm", "pre_ffw_norm": "pre_feedforward_layernorm"}
        norms |= {"post_ffw_norm": "post_feedforward_layernorm"}
    for number in layers_of(config):
        of, at = LAYER.format(number), f"layer_{number}/"
        q, k, v = (
            heads(tensors[f"{of}self_attn.{name}_proj.weight"], width).transpose(1, 0, 2) for name in ("q", "k", "v")
        )
        if len(q) == len(k):
            flat[f"{at}attn/qkv_einsum/w"] = np.stack([q, k, v])
        else:
            flat[f"{at}attn/q_einsum/w"], flat[f"{at}attn/kv_einsum/w"] = q, np.stack([k, v])
        out = tensors[f"{of}self_attn.o_proj.weight"]
        flat[f"{at}attn/attn_vec_einsum/w"] = out.T.reshape(-1, width, config["hidden_size"])
        gates = np.stack([tensors[f"{of}mlp.{name}_proj.weight"] for name in ("gate", "up")])
        flat[f"{at}mlp/gating_einsum"] = gates if transposed else gates.transpose(0, 2, 1)
        flat[f"{at}mlp/linear"] = tensors[f"{of}mlp.down_proj.weight"].T
        for name in ("query", "key"):
            norm = tensors.get(f"{of}self_attn.{name[0]}_norm.weight")
            if norm is not None:
                flat[f"{at}attn/_{name}_norm/scale"] = norm
        flat |= {f"{at}{name}/scale": tensors[f"{of}{stored}.weight"] for name, stored in norms.items()}
    return flat


def tunix_parameters(config: dict[str, Any], tensors: Tensors) -> Flat:
    """Return the NNX state of Tunix's Llama and Qwen models, in one tree with ``/`` in its keys."""
    width, flat = config["head_dim"], {"embedder/input_embedding": tensors["model.embed_tokens.weight"]}
    flat["final_norm/w"] = tensors["model.norm.weight"]
    if "lm_head.weight" in tensors:
        flat["lm_head/w"] = tensors["lm_head.weight"].T
    for number in layers_of(config):
        of, at = LAYER.format(number), f"layers/{number}/"
        for name in ("q", "k", "v"):
            flat[f"{at}attn/{name}_proj/w"] = heads(tensors[f"{of}self_attn.{name}_proj.weight"], width)
            for part, end in (("bias", "_bias"), ("norm", "_norm/w")):
                stored = f"{of}self_attn.{name}_proj.bias" if part == "bias" else f"{of}self_attn.{name}_norm.weight"
                if stored in tensors:
                    flat[f"{at}attn/{name}{end}"] = tensors[stored]
        out = tensors[f"{of}self_attn.o_proj.weight"]
        flat[f"{at}attn/o_proj/w"] = out.T.reshape(-1, width, config["hidden_size"])
        for name in ("gate", "up", "down"):
            flat[f"{at}mlp/{name}_proj/kernel"] = tensors[f"{of}mlp.{name}_proj.weight"].T
        for name in ("input_layernorm", "post_attention_layernorm"):
            flat[f"{at}{name}/w"] = tensors[f"{of}{name}.weight"]
    return {f"{name}/value": array for name, array in flat.items()}


def save_levanter(path: Path, config: dict[str, Any], tensors: Tensors, *, stacked: bool) -> Path:
    """Save a step of Levanter: zarr arrays in an OCDBT store, and ``metadata.json`` at the end."""
    path.mkdir(parents=True)
    for name, array in levanter_parameters(config, tensors, stacked=stacked).items():
        kvstore = {"driver": "ocdbt", "base": f"file://{path}/", "path": f"model/{name}/"}
        _write_array({"driver": "zarr3", "kvstore": kvstore}, array)
    (path / "metadata.json").write_text(json.dumps({"step": 3, "is_temporary": False}), encoding="utf-8")
    return path


def levanter_parameters(config: dict[str, Any], tensors: Tensors, *, stacked: bool) -> Flat:
    """Return the model of Levanter, in one tree with ``/`` in its keys."""
    width, d = config["head_dim"], config["hidden_size"]
    kv_heads = config["num_key_value_heads"]
    flat = {"embeddings/token_embeddings/weight": tensors["model.embed_tokens.weight"]}
    flat["transformer/norm/weight"] = tensors["model.norm.weight"]
    if "lm_head.weight" in tensors:
        flat["lm_head/weight"] = tensors["lm_head.weight"]
    shapes = {"q_proj": (kv_heads, -1, width), "k_proj": (kv_heads, width), "v_proj": (kv_heads, width)}
    layers: list[Flat] = []
    for number in layers_of(config):
        prefix, layer = LAYER.format(number), {}
        for name, array in tensors.items():
            if name.startswith(prefix):
                path = name.removeprefix(prefix).replace(".", "/")
                projection = path.split("/")[1]
                if projection in shapes:
                    array = array.reshape(*shapes[projection], *array.shape[1:])
                elif projection == "o_proj":
                    array = array.reshape(d, -1, width)
                layer[path] = array
        layers.append(layer)
    for path in layers[0]:
        parts = [layer[path] for layer in layers]
        if stacked:
            flat[f"transformer/layers/stacked/{path}"] = np.stack(parts)
        else:
            flat |= {f"transformer/layers/blocks/{number}/{path}": part for number, part in enumerate(parts)}
    return flat


def save_easydel(path: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    """Save a model of EasyDeL: zarr arrays in folders, an index of them, and the configuration."""
    path.mkdir(parents=True)
    entries = []
    for name, array in tensors.items():
        module, _, _ = name.rpartition(".")
        kind = "embedding" if module.endswith("embed_tokens") else "bias" if name.endswith("bias") else "kernel"
        stored = array.T if kind == "kernel" else array
        place = f"model/{module.replace('.', '/')}/{kind}"
        _write_array({"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path / place}/"}}, stored)
        entries.append({"path": place, "shape": list(stored.shape), "dtype": "float32"})
    index = {"format": "tensorstore", "prefixes": {"model": entries}}
    (path / "tensorstore_index.json").write_text(json.dumps(index), encoding="utf-8")
    (path / "config.json").write_text(
        json.dumps({**config, "attn_mechanism": "vanilla", "bits": None}), encoding="utf-8"
    )
    return path


def save_keras(path: Path, config: dict[str, Any], tensors: Tensors, settings: dict[str, Any]) -> Path:
    """Save a preset of KerasHub: the weights of the backbone, and its configuration."""
    gemma, width = config["model_type"].startswith("gemma"), config["head_dim"]
    block = {"llama": "llama_transformer_decoder", "gemma3_text": "gemma3_decoder_block"}.get(
        config["model_type"], "gemma_decoder_block"
    )
    flat = {"reversible_embedding/vars/0": tensors["model.embed_tokens.weight"]}
    flat["rms_normalization/vars/0" if gemma else "llama_layer_norm/vars/0"] = tensors["model.norm.weight"]
    if "lm_head.weight" in tensors:
        flat["reversible_embedding/vars/1"] = tensors["lm_head.weight"].T
    attention = "attention/{}_dense" if gemma else "_self_attention_layer/_{}_dense"
    gemma_modules = {"mlp.gate_proj": "gating_ffw", "mlp.up_proj": "gating_ffw_2", "mlp.down_proj": "ffw_linear"}
    gemma_modules |= {"self_attn.q_norm": "attention/query_norm", "self_attn.k_norm": "attention/key_norm"}
    gemma_modules |= {"input_layernorm": "pre_attention_norm", "post_attention_layernorm": "post_attention_norm"}
    gemma_modules |= {"pre_feedforward_layernorm": "pre_ffw_norm", "post_feedforward_layernorm": "post_ffw_norm"}
    llama_modules = {"mlp.gate_proj": "_feedforward_gate_dense", "mlp.up_proj": "_feedforward_intermediate_dense"}
    llama_modules |= {"mlp.down_proj": "_feedforward_output_dense", "input_layernorm": "_self_attention_layernorm"}
    llama_modules |= {"post_attention_layernorm": "_feedforward_layernorm"}
    for number in layers_of(config):
        prefix, module = LAYER.format(number), f"{block}_{number}" if number else block
        for name, projection in {"query": "q", "key": "k", "value": "v"}.items():
            kernel = heads(tensors[f"{prefix}self_attn.{projection}_proj.weight"], width)
            flat[f"{module}/{attention.format(name)}/vars/0"] = kernel.transpose(1, 0, 2) if gemma else kernel
        out = tensors[f"{prefix}self_attn.o_proj.weight"].T.reshape(-1, width, config["hidden_size"])
        flat[f"{module}/{attention.format('output')}/vars/0"] = out
        for name, stored in (gemma_modules if gemma else llama_modules).items():
            if f"{prefix}{name}.weight" in tensors:
                flat[f"{module}/{stored}/vars/0"] = tensors[f"{prefix}{name}.weight"].T
    path.mkdir(parents=True)
    with h5py.File(path / "model.weights.h5", "w") as file:
        for name, array in flat.items():
            file[f"layers/{name}"] = array
    (path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


def keras_settings(name: str, config: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the ``config.json`` of a preset of KerasHub."""
    values = {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_query_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_key_value_heads"],
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "head_dim": config["head_dim"],
        "layer_norm_epsilon": config["rms_norm_eps"],
        **more,
    }
    return {"class_name": name, "config": values, "registered_name": f"keras_hub>{name}"}


def _write_array(spec: dict[str, Any], array: NDArray[Any]) -> None:
    """Write an array with tensorstore."""
    store = tensorstore.open(spec, create=True, dtype=array.dtype.name, shape=array.shape).result()
    store.write(np.ascontiguousarray(array)).result()

"""Load any causal language model of transformers from a Hugging Face directory, for the engine torch."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.pytorch_utils import Conv1D

from birdie_zmq.engine.model_api import Model
from birdie_zmq.engine.torch.exact_rows import ExactRows
from birdie_zmq.errors import ModelLoadError
from birdie_zmq.models import transformers_functions as functions
from birdie_zmq.models import transformers_quantised as quantised
from birdie_zmq.models.lora import LoraAdapter, LowRankUpdate, read_adapter
from birdie_zmq.models.lora_config import ADAPTER_CONFIG_FILE
from birdie_zmq.models.tensor_names import abbreviate, name_variants
from birdie_zmq.models.tensor_source import SafetensorsDirectory
from birdie_zmq.models.transformers_probe import probe

logger = logging.getLogger(__name__)

_MAX_LENGTH_KEYS = ("n_positions", "max_position_embeddings", "n_ctx")
"""Config keys of the maximum length of a row, in the order in which lm_eval's hf backend looks them up."""


def load_checkpoint(
    directory: Path, dtype: str = "auto", adapter: Path | None = None, max_length: int | None = None
) -> Model:
    """Load a directory, whose weights must be safetensors; code in it is not run.

    If the config ties the head to the embedding, the embedding is the head even if the file has another, as with lm_eval's
    hf.

    Args:
        directory: Holds ``config.json`` and the weights.
        dtype: float32, bfloat16, float16, or auto: bfloat16 if the checkpoint is bfloat16, else float32.
        adapter: The directory of a LoRA adapter, which is merged into the weights.
        max_length: The maximum length of a row in tokens, if it is not the model's own.

    Raises:
        ModelLoadError: transformers cannot read the directory, weights are missing, or the adapter is not plain LoRA or
            does not fit the model, or the model is quantised.
    """
    transformers.utils.logging.disable_progress_bar()
    try:
        lora = None if adapter is None else read_adapter(adapter)
        with _without_adapter(directory) as base:
            config = transformers.AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                base,
                config=config,
                dtype=_stored_dtype(config, base) if dtype == "auto" else getattr(torch, dtype),
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:
        method = quantised.describe_method(directory)
        raise ModelLoadError(
            f"transformers cannot load {directory}: {type(error).__name__}: {error}{method}"
        ) from error
    module, report = loaded
    # transformers initialises missing weights at random.
    missing = sorted({*map(str, report["missing_keys"]), *map(str, report["mismatched_keys"])})
    if missing:
        raise ModelLoadError(f"{directory} lacks weights, or has them in other shapes: {abbreviate(missing)}")
    if report["unexpected_keys"]:
        logger.warning("%s has unused weights: %s", directory, abbreviate(report["unexpected_keys"]))
    _tie_again(module, directory)
    quantised.prepare(module)
    if lora is not None:
        try:
            quantised.check_mergeable(module)
            _merge(module, lora)
        except ValueError as error:
            raise ModelLoadError(str(error)) from error
        logger.warning("merged the adapter %s into %d tensors of %s", lora, len(lora.updates), directory)
    if torch.cuda.is_available() and not getattr(module, "is_quantized", False):
        module.to("cuda")  # where the engine computes; on the CPU, the probe of a large model would take minutes
    return build_model(module, max_length)


@contextlib.contextmanager
def _without_adapter(directory: Path) -> Iterator[Path]:
    """Provide a directory without its adapter, which transformers would apply where peft is installed."""
    if not (directory / ADAPTER_CONFIG_FILE).is_file():
        yield directory
        return
    with tempfile.TemporaryDirectory() as temporary:
        for path in directory.iterdir():
            if not path.name.startswith("adapter_"):
                (Path(temporary) / path.name).symlink_to(path.absolute())
        yield Path(temporary)


def _tie_again(module: Any, directory: Path) -> None:
    """Tie the head to the embedding if the config says so; transformers leaves a stored head of other values untied."""
    head = module.get_output_embeddings()
    before = None if head is None else head.weight
    module.tie_weights()
    if before is not None and module.get_output_embeddings().weight is not before:
        name = next(name for name, part in module.named_modules() if part is head)
        logger.warning(
            "%s: the tensor %s.weight differs from the embedding, but the config ties the two (tie_word_embeddings), so "
            "the embedding is also the LM head, as in lm_eval's hf, and %s.weight is ignored",
            directory,
            name,
            name,
        )


def _merge(module: Any, adapter: LoraAdapter) -> None:
    """Add the updates of an adapter to the linear layers of a model, in float32.

    Raises:
        ValueError: A tensor of the adapter fits no linear layer.
    """
    embedding = module.get_input_embeddings().weight
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear | Conv1D)}
    merged = set()
    for adapted, update in adapter.updates.items():
        name = next((name for name in name_variants(adapted, f"{module.base_model_prefix}.") if name in layers), None)
        if name is None or name in merged:
            raise adapter.misfit(adapted, "is no linear layer of the model")
        weight = layers[name].weight
        if weight is embedding:
            raise adapter.misfit(adapted, "shares its matrix with the embedding")
        oriented = LowRankUpdate(update.down, update.up, update.scale, transposed=isinstance(layers[name], Conv1D))
        adapter.check(adapted, oriented, tuple(weight.shape))
        with torch.no_grad():
            weight.copy_(weight.float() + torch.from_numpy(oriented.values()).to(weight.device))
        merged.add(name)


def build_model(module: Any, max_length: int | None = None) -> Model:
    """Build a `Model` from a causal language model of transformers, with the functions that a probe finds to be right.

    Args:
        module: The model.
        max_length: The maximum length of a row in tokens, if it is not the model's own.
    """
    module.eval()
    text = module.config.get_text_config()
    lengths = (getattr(text, name, None) for name in _MAX_LENGTH_KEYS)
    own_length = next((int(length) for length in lengths if length), None)
    modes = probe(module, max_length or own_length)
    logger.log(logging.WARNING if modes.reasons else logging.INFO, "%s: %s", type(module).__name__, modes.describe())
    whole = functions.logits if modes.head is None else functions.hidden
    function = whole if modes.takes_padding else ExactRows(whole)
    if modes.head is None:
        return Model(params=module, logits=function, max_length=own_length)
    model = Model(params=module, hidden=function, unembed=modes.head, max_length=own_length)
    if modes.states is None:
        return model
    states = modes.states
    model = replace(model, init_state=states.init_state, extend=states.extend)
    if not modes.has_trees:
        return model
    model = replace(model, branch=states.branch, prefill=states.prefill, append=states.append)
    return replace(model, extend_after=states.extend_after) if modes.shares_prefixes else model


def _stored_dtype(config: Any, directory: Path) -> Any:
    """Return bfloat16 if the config names it, or if it names none and all weights are bfloat16; else float32."""
    named = getattr(config, "dtype", None)
    if named is not None:
        return torch.bfloat16 if named in (torch.bfloat16, "bfloat16") else torch.float32
    source = SafetensorsDirectory(directory, getattr(config, "transformers_weights", None))
    stored = {header.dtype for header in source.headers.values()}
    return torch.bfloat16 if stored == {"BF16"} else torch.float32

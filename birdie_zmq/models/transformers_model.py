"""A Hugging Face directory as transformers reads it, for the engine torch: any of its causal language models."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from birdie_zmq.engine.model_api import Model
from birdie_zmq.errors import ModelLoadError

logger = logging.getLogger(__name__)

_LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")
"""Where configs name the most tokens of a row, in the order in which lm_eval's hf backend asks."""

_MOST_NAMED = 5

_TRIAL_TOKENS = 8


def load_checkpoint(directory: Path, dtype: str = "auto") -> Model:
    """Read a directory; its weights are safetensors, and no code that comes with it is run.

    Args:
        directory: Holds ``config.json`` and the weights.
        dtype: float32, bfloat16, or auto: bfloat16 where the checkpoint is, else float32.

    Raises:
        ModelLoadError: transformers cannot read it, or weights are missing.
    """
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=_stored_dtype(config, directory) if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelLoadError(f"transformers cannot load {directory}: {type(error).__name__}: {error}") from error
    module, report = loaded
    # transformers would draw at random what a checkpoint lacks.
    lacking = sorted({*map(str, report["missing_keys"]), *map(str, report["mismatched_keys"])})
    if lacking:
        raise ModelLoadError(f"{directory} lacks weights, or has them in other shapes: {_some(lacking)}")
    if report["unexpected_keys"]:
        logger.warning("%s has weights that are not used: %s", directory, _some(sorted(report["unexpected_keys"])))
    return model_of(module)


def model_of(module: Any) -> Model:
    """A causal language model of transformers, its head apart where that is seen to change nothing."""
    module.eval()
    text = module.config.get_text_config()
    lengths = (getattr(text, name, None) for name in _LENGTHS)
    max_length = next((int(length) for length in lengths if length), None)
    if _head_is_apart(module):
        return Model(params=module, hidden=_hidden, unembed=_unembed, max_length=max_length)
    return Model(params=module, logits=_logits, max_length=max_length)


def _logits(module: Any, tokens: Any) -> Any:
    return module(tokens, use_cache=False).logits


def _hidden(module: Any, tokens: Any) -> Any:
    return module.base_model(tokens, use_cache=False).last_hidden_state


def _unembed(module: Any, hidden: Any) -> Any:
    return module.get_output_embeddings()(hidden)


def _head_is_apart(module: Any) -> bool:
    """Whether the output embeddings of what the base model returns are the logits, to the last bit.

    Some families scale or cap their logits behind the head, which a tolerance could miss.
    """
    head = module.get_output_embeddings()
    if head is None or module.base_model is module:
        return False
    count = min(_TRIAL_TOKENS, head.weight.shape[0])
    tokens = torch.arange(count, device=head.weight.device)[None]
    with torch.inference_mode():
        try:
            return bool(torch.equal(_unembed(module, _hidden(module, tokens)), _logits(module, tokens)))
        except Exception as error:  # noqa: BLE001 - a model of another build gives its logits whole
            logger.warning("the head of %s is not taken apart: %s", type(module).__name__, error)
            return False


def _stored_dtype(config: Any, directory: Path) -> Any:
    """bfloat16 where the config says so, or says nothing and all weights are; else float32."""
    named = getattr(config, "dtype", None)
    if named is not None:
        return torch.bfloat16 if named in (torch.bfloat16, "bfloat16") else torch.float32
    stored = set()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            stored |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - it is no dict
    return torch.bfloat16 if stored == {"BF16"} else torch.float32


def _some(names: list[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")

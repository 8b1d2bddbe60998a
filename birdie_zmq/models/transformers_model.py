"""Load any causal language model of transformers from a Hugging Face directory, for the engine torch."""

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

_MAX_LENGTH_KEYS = ("n_positions", "max_position_embeddings", "n_ctx")
"""Config keys of the maximum length of a row, in the order in which lm_eval's hf backend looks them up."""

_MAX_LISTED = 5

_PROBE_TOKENS = 8


def load_checkpoint(directory: Path, dtype: str = "auto") -> Model:
    """Load a directory, whose weights must be safetensors; code in it is not run.

    Args:
        directory: Holds ``config.json`` and the weights.
        dtype: float32, bfloat16, or auto: bfloat16 if the checkpoint is bfloat16, else float32.

    Raises:
        ModelLoadError: transformers cannot read the directory, or weights are missing.
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
    # transformers initialises missing weights at random.
    missing = sorted({*map(str, report["missing_keys"]), *map(str, report["mismatched_keys"])})
    if missing:
        raise ModelLoadError(f"{directory} lacks weights, or has them in other shapes: {_abbreviate(missing)}")
    if report["unexpected_keys"]:
        logger.warning("%s has unused weights: %s", directory, _abbreviate(sorted(report["unexpected_keys"])))
    return build_model(module)


def build_model(module: Any) -> Model:
    """Build a `Model` from a causal language model of transformers, with `hidden` and `unembed` if its head is separable."""
    module.eval()
    text = module.config.get_text_config()
    lengths = (getattr(text, name, None) for name in _MAX_LENGTH_KEYS)
    max_length = next((int(length) for length in lengths if length), None)
    if _head_is_separable(module):
        return Model(params=module, hidden=_hidden, unembed=_unembed, max_length=max_length)
    return Model(params=module, logits=_logits, max_length=max_length)


def _logits(module: Any, tokens: Any) -> Any:
    return module(tokens, use_cache=False).logits


def _hidden(module: Any, tokens: Any) -> Any:
    return module.base_model(tokens, use_cache=False).last_hidden_state


def _unembed(module: Any, hidden: Any) -> Any:
    return module.get_output_embeddings()(hidden)


def _head_is_separable(module: Any) -> bool:
    """Return whether the head applied to the base model's hidden states gives the logits, bit for bit.

    Some families scale or cap their logits after the head; a comparison with a tolerance could miss that.
    """
    head = module.get_output_embeddings()
    if head is None or module.base_model is module:
        return False
    count = min(_PROBE_TOKENS, head.weight.shape[0])
    tokens = torch.arange(count, device=head.weight.device)[None]
    with torch.inference_mode():
        try:
            return bool(torch.equal(_unembed(module, _hidden(module, tokens)), _logits(module, tokens)))
        except Exception as error:  # noqa: BLE001 - a model of another structure is used by its logits
            logger.warning("cannot call the LM head of %s separately: %s", type(module).__name__, error)
            return False


def _stored_dtype(config: Any, directory: Path) -> Any:
    """Return bfloat16 if the config names it, or if it names none and all weights are bfloat16; else float32."""
    named = getattr(config, "dtype", None)
    if named is not None:
        return torch.bfloat16 if named in (torch.bfloat16, "bfloat16") else torch.float32
    stored = set()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            stored |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a dict
    return torch.bfloat16 if stored == {"BF16"} else torch.float32


def _abbreviate(names: list[str]) -> str:
    rest = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")

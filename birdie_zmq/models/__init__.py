"""The models that the default ``api.py`` knows: the demo, and checkpoints as they lie on disk.

`load_model` and `load_tokenizer` here are what the page falls through to, and what a worker uses without a page.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from birdie_zmq.engine.model_api import Model
from birdie_zmq.errors import ModelLoadError, TokenizerError, UsageError
from birdie_zmq.models.resolution import BUILT_IN, fingerprint_of, locate
from birdie_zmq.models.tokenizer import CheckpointTokenizer, read_tokenizer
from birdie_zmq.settings import ENGINE_VARIABLE

_DTYPES = ("auto", "float32", "bfloat16")

_OWN = {"dtype", "revision", "tokenizer"}
_ENGINE = {
    "max_length",
    "max_gen_toks",
    "add_bos_token",
    "prefix_token_id",
    "chat_template_args",
    "enable_thinking",
    "think_end_token",
    "seed",
}
_WITHOUT_EFFECT = {"trust_remote_code", "truncation", "use_fast_tokenizer", "logits_cache", "softmax_dtype"}
"""What lm_eval's hf backend takes and what needs no saying here; docs/reference/model_args.md says why of each."""


def load_model(model_tag: str, *, mesh: Any = None, **keywords: Any) -> Model:
    """The model of a tag, for the engine of this process: in JAX, its weights on the default device or over a mesh, or in PyTorch.

    Args:
        model_tag: ``demo``, a checkpoint directory, a ``.gguf`` file, or ``organisation/name`` of the hub. In PyTorch it
            is a directory or a repository, which transformers reads.
        mesh: A `jax.sharding.Mesh` with the axes ``data`` and ``model``; its devices share the weights.
        **keywords: ``dtype`` is float32, bfloat16, or auto: bfloat16 where the checkpoint is, else float32.
            ``revision`` is one of the hub's repository.

    Raises:
        UnknownModelTag: The tag is none of those.
        UsageError: A keyword is not known or has a wrong value, or the engine is none for this model.
        ModelLoadError: The checkpoint is damaged, or its architecture is not known.
    """
    path = locate(model_tag, keywords.get("revision"))
    dtype = _checked(model_tag, keywords)
    engine = os.environ.get(ENGINE_VARIABLE, "jax")
    if engine != "jax":
        return _of_another_engine(engine, model_tag, path, dtype)
    # Here, so that the agent and load_tokenizer do without jax.
    from birdie_zmq.models.decoder import model_of
    from birdie_zmq.models.loader import load_checkpoint

    try:
        architecture, params = load_checkpoint(path, dtype, mesh)
    except (OSError, ValueError) as error:
        raise ModelLoadError(str(error)) from error
    asked = keywords.get("max_length")
    if "positions" in params.outer and isinstance(asked, int) and asked > architecture.max_length:
        raise UsageError(
            f"max_length={asked} is more than the {architecture.max_length} positions that the model {model_tag!r} has "
            "learned; it has none for what comes after them"
        )
    return model_of(architecture, params, mesh)


def _of_another_engine(engine: str, model_tag: str, path: Path, dtype: str) -> Model:
    if engine != "torch":
        raise UsageError(
            f"the built-in models are for the engines jax and torch; for {engine}, write load_model and load_tokenizer in "
            "an api.py, and name it with --api of the worker or api= in model_args"
        )
    if model_tag in BUILT_IN or path.is_file():
        what = (
            f"the model {model_tag!r} that comes with birdie-zmq" if model_tag in BUILT_IN else f"the GGUF file {path}"
        )
        raise UsageError(
            f"{what} is read for the engine jax only, and this worker's is torch; say engine=jax, or leave engine= out, or "
            "start workers.jax_worker; the engine torch reads Hugging Face directories"
        )
    try:
        # Here, so that nothing else of the package imports torch.
        from birdie_zmq.models.transformers_model import load_checkpoint
    except ModuleNotFoundError as error:
        raise ModelLoadError(
            f"the engine torch reads {path} by transformers, and {error.name} is not installed; "
            "pip install 'birdie-zmq[torch]'"
        ) from error
    return load_checkpoint(path, dtype)


def load_tokenizer(model_tag: str, **keywords: Any) -> CheckpointTokenizer:
    """The tokenizer of a tag, or of the checkpoint that ``tokenizer=`` names.

    Raises:
        UnknownModelTag: The tag is none that `load_model` takes.
        UsageError: A keyword is not known or has a wrong value.
        TokenizerError: The checkpoint has no tokenizer that can be read.
    """
    model = locate(model_tag, keywords.get("revision"), weights=False)
    _checked(model_tag, keywords)
    given = keywords.get("tokenizer")
    path = model if given is None else locate(str(given), weights=False)
    fingerprint = fingerprint_of(model) if path == model else f"{fingerprint_of(model)} {fingerprint_of(path)}"
    if path.is_dir():
        return read_tokenizer(path, fingerprint)
    from birdie_zmq.models.gguf_file import GgufFile

    try:
        return GgufFile(path).tokenizer(fingerprint)
    except ValueError as error:
        raise TokenizerError(str(error)) from error


def _checked(model_tag: str, keywords: Mapping[str, Any]) -> str:
    """The dtype, once all keywords are seen to be known."""
    known = _OWN | _ENGINE | _WITHOUT_EFFECT
    unknown = sorted(set(keywords) - known)
    if unknown:
        raise UsageError(
            f"the model {model_tag!r} does not know {', '.join(unknown)} in model_args; it knows "
            f"{', '.join(sorted(known))}"
        )
    if str(keywords.get("softmax_dtype", "float32")) != "float32":
        raise UsageError(f"softmax_dtype={keywords['softmax_dtype']!r}: scores are always normalised in float32")
    dtype = str(keywords.get("dtype", "auto"))
    if dtype not in _DTYPES:
        raise UsageError(
            f"dtype={dtype!r} in model_args is none of {', '.join(_DTYPES)} (float16 overflows where these do not)"
        )
    return dtype

"""The built-in models: the demo, checkpoint directories, GGUF files and hub repositories.

The default ``api.py`` falls back to `load_model` and `load_tokenizer` here. A worker without a user module uses them
directly.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from birdie_zmq.engine.mesh_shape import SIZE_ARGUMENTS, mesh_of_sizes
from birdie_zmq.engine.model_api import CheckpointFingerprint, Model
from birdie_zmq.errors import ModelLoadError, TokenizerError, UsageError
from birdie_zmq.models.checkpoint import Checkpoint, resolve_model
from birdie_zmq.models.demo_tokenizer import DemoTokenizer
from birdie_zmq.models.fingerprint import Fingerprint, tokenizer_files
from birdie_zmq.models.native.directory import native_checkpoint
from birdie_zmq.models.native.hints import ModelHints
from birdie_zmq.models.resolution import BUILT_IN, is_hub_name, resolve_checkpoint
from birdie_zmq.models.sentencepiece_file import SUFFIX, SentencePieceFile, read_sentencepiece
from birdie_zmq.models.tokenizer import CheckpointTokenizer, read_tokenizer
from birdie_zmq.settings import ENGINE_VARIABLE
from birdie_zmq.types import REQUEST_ARGUMENTS

logger = logging.getLogger(__name__)

_DTYPES = ("auto", "float32", "bfloat16")
_TORCH_DTYPES = (*_DTYPES, "float16")

_MODEL_ARGS = {
    "config",
    "dtype",
    "gguf_file",
    "model_name",
    "peft",
    "revision",
    "subfolder",
    "tokenizer",
    "tokenizer_revision",
}
_ENGINE_ARGS = {"max_length", "add_bos_token", *REQUEST_ARGUMENTS}
_LENGTH_ARGS = ("max_length", "max_model_len", "context_length")
"""The maximum length of a row by its name in lm_eval's hf, in vLLM and in SGLang."""
_IGNORED_ARGS = {"trust_remote_code", "truncation", "use_fast_tokenizer", "logits_cache", "softmax_dtype"}
"""Arguments of lm_eval's hf backend that have no effect here; docs/reference/model_args.md gives the reasons."""


def load_model(model_tag: str, *, mesh: Any = None, **keywords: Any) -> Model:
    """Load the model of a tag for the engine of this process.

    In JAX, the weights are put on the default device or sharded over a mesh.

    Args:
        model_tag: ``demo``, a checkpoint directory, also as a JAX trainer writes it, a ``.gguf`` or ``.weights.h5`` file, or the
            name of a hub repository, such as ``gpt2`` or ``organisation/name``. In PyTorch it is a directory or a repository, which transformers reads.
        mesh: A `jax.sharding.Mesh` with the axes ``data`` and ``model``, over which the weights are sharded.
        **keywords: ``dtype`` is float32, bfloat16, or auto: bfloat16 if the checkpoint is bfloat16, else float32; in PyTorch also float16.
            ``revision`` is a revision of the hub repository. ``subfolder`` is a directory in the directory or repository
            of the tag, and ``gguf_file`` a GGUF file in it. ``peft`` is the directory or hub repository of a LoRA adapter,
            which is merged into the weights. ``config`` and ``model_name`` describe a checkpoint of a trainer that does not
            describe itself: a directory or hub repository whose config.json is that of the same architecture, and the
            trainer's name of the model.

    Raises:
        UnknownModelTag: The tag is none of those.
        UsageError: An argument is unknown or has a wrong value, or the engine does not support this model.
        ModelLoadError: The checkpoint is damaged, or its architecture is unknown.
    """
    checkpoint = _resolve(model_tag, keywords)
    dtype = _check_arguments(model_tag, keywords)
    _check_mesh(keywords, mesh)
    max_length = _max_length(keywords)
    fingerprint = Fingerprint(checkpoint.files())  # computed while the weights are loaded
    model = _load(model_tag, checkpoint, dtype, mesh, max_length)
    if max_length is not None and "max_length" not in keywords:  # the engine reads that one by itself
        if model.max_length is not None and max_length > model.max_length:
            logger.warning(
                "a max_length of %d exceeds the model's own max_length of %d tokens", max_length, model.max_length
            )
        model = replace(model, max_length=max_length)
    return replace(model, fingerprint=CheckpointFingerprint(fingerprint.result()))


def _load(model_tag: str, checkpoint: Checkpoint, dtype: str, mesh: Any, max_length: int | None) -> Model:
    engine = os.environ.get(ENGINE_VARIABLE, "jax")
    if engine != "jax":
        return _load_for_other_engine(engine, model_tag, checkpoint, dtype, max_length)
    # Imported here, so that the agent and load_tokenizer work without jax.
    from birdie_zmq.models.attention import default_target
    from birdie_zmq.models.decoder import build_model
    from birdie_zmq.models.loader import load_checkpoint

    try:
        architecture, params = load_checkpoint(checkpoint.path, dtype, mesh, checkpoint.adapter, checkpoint.hints)
    except (OSError, ValueError) as error:
        raise ModelLoadError(str(error)) from error
    limit = architecture.position_limit
    if limit is not None and max_length is not None and max_length > limit:
        raise UsageError(
            f"max_length={max_length} is more than the {limit} positions of the model {model_tag!r}; lower max_length"
        )
    widths = [layer.attention.head_width for layer in architecture.layers if layer.attention.heads]
    return build_model(architecture, params, default_target(mesh, widths, params.float32_bytes))


def _load_for_other_engine(
    engine: str, model_tag: str, checkpoint: Checkpoint, dtype: str, max_length: int | None
) -> Model:
    path = checkpoint.path
    if engine != "torch":
        raise UsageError(
            f"the built-in models are for the engines jax and torch; for {engine}, write load_model and load_tokenizer in "
            "an api.py, and name it with --api of the worker or api= in model_args"
        )
    native = native_checkpoint(path)
    if model_tag in BUILT_IN or path.is_file() or native is not None:
        source = f"the GGUF file {path}" if native is None else f"the checkpoint {path} of a JAX trainer"
        source = f"the built-in model {model_tag!r}" if model_tag in BUILT_IN else source
        raise UsageError(
            f"{source} needs the engine jax, and the engine of this worker is torch; set engine=jax, omit engine=, "
            "or start workers.jax_worker; the engine torch loads Hugging Face directories"
        )
    try:
        # Imported here, so that nothing else of the package imports torch.
        from birdie_zmq.models.transformers_model import load_checkpoint
    except ModuleNotFoundError as error:
        raise ModelLoadError(
            f"the engine torch loads {path} with transformers, but {error.name} is not installed; "
            "run: pip install 'birdie-zmq[torch]'"
        ) from error
    return load_checkpoint(path, dtype, checkpoint.adapter, max_length)


def load_tokenizer(model_tag: str, **keywords: Any) -> Any:
    """Load the tokenizer of a tag, or of the checkpoint or SentencePiece file that ``tokenizer=`` names.

    Returns:
        A `CheckpointTokenizer`, or a `SentencePieceFile`.

    Raises:
        UnknownModelTag: `load_model` would not accept the tag.
        UsageError: An argument is unknown or has a wrong value.
        TokenizerError: The checkpoint has no tokenizer that can be read.
    """
    model = _resolve(model_tag, keywords, weights=False)
    _check_arguments(model_tag, keywords)
    add_bos = keywords.get("add_bos_token")  # the worker refuses other values than True and False
    add_bos_token = add_bos if isinstance(add_bos, bool) else None
    given = keywords.get("tokenizer")
    tokenizer: CheckpointTokenizer | SentencePieceFile
    if given is not None and str(given).endswith(SUFFIX):
        tokenizer = read_sentencepiece(str(given), add_bos_token)
    else:
        path = _tokenizer_path(model_tag, model, keywords)
        tokenizer = _read_tokenizer(path, str(model_tag if given is None else given), add_bos_token)
    if not is_hub_name(model_tag):
        # An api.py may load these weights by itself. Those of a hub name may not have been downloaded yet.
        tokenizer.checkpoint = Fingerprint(model.files())
    return tokenizer


def _tokenizer_path(model_tag: str, model: Checkpoint, keywords: Mapping[str, Any]) -> Path:
    """Return the directory or GGUF file with the tokenizer."""
    given, revision = keywords.get("tokenizer"), keywords.get("tokenizer_revision")
    if given is not None:
        return resolve_checkpoint(str(given), revision, weights=False)
    if revision is not None:
        return _resolve(model_tag, {**keywords, "revision": revision}, weights=False).tokenizer
    return model.tokenizer


def _read_tokenizer(path: Path, name: str, add_bos_token: bool | None) -> CheckpointTokenizer:
    fingerprint = Fingerprint(tokenizer_files(path))
    if path in BUILT_IN.values():
        return CheckpointTokenizer(DemoTokenizer(path), fingerprint=fingerprint.result)
    if path.is_dir():
        return read_tokenizer(path, fingerprint.result, name=name, add_bos_token=add_bos_token)
    from birdie_zmq.models.gguf_file import GgufFile

    try:
        return GgufFile(path).tokenizer(fingerprint.result)
    except (OSError, ValueError) as error:
        raise TokenizerError(str(error)) from error


def _resolve(model_tag: str, keywords: Mapping[str, Any], *, weights: bool = True) -> Checkpoint:
    """Return the parts of the model that a tag and its arguments name.

    Raises:
        UsageError: An argument describes the checkpoint of a trainer, and the checkpoint is none.
    """
    peft, config, name = (keywords.get(key) for key in ("peft", "config", "model_name"))
    parts = [str(keywords[name]) for name in ("subfolder", "gguf_file") if keywords.get(name) is not None]
    checkpoint = resolve_model(
        model_tag,
        keywords.get("revision"),
        inside="/".join(parts) or None,
        peft=None if peft is None else str(peft),
        weights=weights,
    )
    if config is None and name is None:
        return checkpoint
    if native_checkpoint(checkpoint.path) is None:
        given = ", ".join(key for key in ("config", "model_name") if keywords.get(key) is not None)
        raise UsageError(
            f"{given} in model_args describes the checkpoint of a JAX trainer, and {checkpoint.path} is none; remove it"
        )
    directory = None if config is None else resolve_checkpoint(str(config), weights=False)
    return replace(checkpoint, hints=ModelHints(None if name is None else str(name), directory))


def _max_length(keywords: Mapping[str, Any]) -> int | None:
    """Return the requested maximum length of a row, by any of its names; None if it is not given.

    Raises:
        UsageError: It is not a whole number above 0, or two names contradict each other.
    """
    given = {name: keywords[name] for name in _LENGTH_ARGS if keywords.get(name) is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{name}={value!r} in model_args must be a whole number above 0")
    if len(set(given.values())) > 1:
        raise UsageError(f"{' and '.join(given)} in model_args contradict each other; set only one")
    return next(iter(given.values()), None)


def _check_mesh(keywords: Mapping[str, Any], mesh: Any) -> None:
    """Check that the mesh has the sizes that arguments of vLLM and SGLang request.

    Raises:
        UsageError: It has others, as where an api.py calls `load_model` without a mesh.
    """
    requested = mesh_of_sizes(keywords)
    if requested is not None and (mesh is None or dict(mesh.shape) != requested.as_argument()):
        names = [name for names in SIZE_ARGUMENTS.values() for name in names if name in keywords]
        raise UsageError(f"{', '.join(names)} in model_args: write mesh={requested} instead")


def _check_arguments(model_tag: str, keywords: Mapping[str, Any]) -> str:
    """Check that all arguments are known, and return the dtype."""
    known = {*_MODEL_ARGS, *_ENGINE_ARGS, *_LENGTH_ARGS, *_IGNORED_ARGS}
    known |= {name for names in SIZE_ARGUMENTS.values() for name in names}
    unknown = sorted(set(keywords) - known)
    if unknown:
        raise UsageError(
            f"the model {model_tag!r} has no argument {', '.join(unknown)} in model_args; known arguments: "
            f"{', '.join(sorted(known))}"
        )
    if str(keywords.get("softmax_dtype", "float32")) != "float32":
        raise UsageError(
            f"softmax_dtype={keywords['softmax_dtype']!r} is not supported: scores are always normalised in float32"
        )
    dtype = str(keywords.get("dtype", "auto"))
    supported = _TORCH_DTYPES if os.environ.get(ENGINE_VARIABLE) == "torch" else _DTYPES
    if dtype not in supported:
        raise UsageError(
            f"dtype={dtype!r} in model_args is not supported; use one of {', '.join(supported)} "
            "(float16 overflows where these do not)"
        )
    return dtype

"""The models that the default ``api.py`` knows.

`load_model` and `load_tokenizer` here are what the page falls through to, and what a worker uses without a page.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from birdie_zmq.engine.contract import Model
from birdie_zmq.errors import UnknownModelTag, UsageError
from birdie_zmq.models.tokenizer import DirectoryTokenizer

DIRECTORIES = {"demo": Path(__file__).parent / "demo"}
"""The tags, and where each model lies."""

_KEYWORDS = {"dtype", "max_length", "max_gen_toks", "add_bos_token", "seed", "trust_remote_code"}
"""What model_args may say to these models; the engine reads most of them."""


def load_model(model_tag: str, **keywords: Any) -> Model:
    """The model of a tag, in JAX.

    Args:
        model_tag: One of `DIRECTORIES`.
        **keywords: ``dtype`` is float32 (the default) or bfloat16.

    Raises:
        UnknownModelTag: The tag is none of those.
        UsageError: A keyword is not known.
    """
    directory = _directory(model_tag, keywords)
    # Here, so that the agent and load_tokenizer do without jax.
    from birdie_zmq.models import decoder
    from birdie_zmq.models.checkpoint import load_decoder

    config, params = load_decoder(directory, dtype=keywords.get("dtype", "float32"))

    def logits(params: Any, tokens: Any) -> Any:
        return decoder.logits(config, params, tokens)

    return Model(logits=logits, params=params, max_length=config.max_length)


def load_tokenizer(model_tag: str, **keywords: Any) -> DirectoryTokenizer:
    """The tokenizer of a tag.

    Raises:
        UnknownModelTag: The tag is none of `DIRECTORIES`.
        UsageError: A keyword is not known.
    """
    return DirectoryTokenizer(_directory(model_tag, keywords))


def _directory(model_tag: str, keywords: Mapping[str, Any]) -> Path:
    if model_tag not in DIRECTORIES:
        known = ", ".join(sorted(DIRECTORIES))
        raise UnknownModelTag(
            f"no model is known by the tag {model_tag!r}; the built-in models are: {known}. For a model of your own, "
            "write load_model and load_tokenizer in an api.py and name it with --api of the worker, or with api= in "
            "model_args"
        )
    unknown = sorted(set(keywords) - _KEYWORDS)
    if unknown:
        raise UsageError(
            f"the model {model_tag!r} does not know {', '.join(unknown)} in model_args; it knows "
            f"{', '.join(sorted(_KEYWORDS))}"
        )
    return DIRECTORIES[model_tag]

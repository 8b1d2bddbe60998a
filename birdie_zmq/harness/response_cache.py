"""lm_eval's ``--use_cache``, bound to one model and kept away from sampled answers.

The keys of that cache depend on the request alone, so a cache could return the answers of another model. One more entry
therefore records the identity of the model that the cache belongs to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from birdie_zmq.client.batching import Prompt
from birdie_zmq.errors import UsageError

IDENTITY_KEY = "birdie_zmq: model identity"
"""The key of that entry. lm_eval's own keys are hexadecimal digits, so they cannot collide with it."""


def bind_cache(cache: Any, identity: str) -> None:
    """Bind a new cache to a model; leave a cache that is bound to this model unchanged.

    Args:
        cache: The ``SqliteDict`` that lm_eval has opened.
        identity: The identity of the model, from its description.

    Raises:
        UsageError: The cache has answers of another model, or does not record the model of its answers.
    """
    if IDENTITY_KEY in cache:
        if cache[IDENTITY_KEY] == identity:
            return
        reason = "holds the answers of another model, or of this model with other model_args or weights"
    elif cache:
        reason = "does not say which model its answers belong to (another backend or an older birdie-zmq wrote it)"
    else:
        cache[IDENTITY_KEY] = identity
        cache.commit()  # Blocks until the entry is on disk, so that no answer can be written before it.
        return
    raise UsageError(f"the cache {cache.filename} {reason}: give another path to --use_cache, or delete this file")


def is_never_cached(kind: str, arguments: Sequence[Any]) -> bool:
    """Return whether lm_eval never reads its cache for a request, so that the answer must not be stored."""
    return kind == "generate_until" and bool(arguments[1].get("do_sample", False))


def reject_sampled_repeats(prompts: Sequence[Prompt], settings: Sequence[Mapping[str, Any]]) -> None:
    """Reject repeated prompts with sampled answers that would be cached: the next run would get one answer for all.

    Args:
        prompts: All prompts of one call.
        settings: The ``generation_kwargs`` of each prompt, as the task gave them.

    Raises:
        UsageError: A sampled prompt occurs more than once, and lm_eval would cache its answer.
    """
    repeats = Counter((prompt.text, prompt.settings) for prompt in prompts if prompt.key is not None)
    for prompt, given in zip(prompts, settings, strict=True):
        if not given.get("do_sample", False) and repeats[prompt.text, prompt.settings] > 1:
            raise UsageError(
                "--use_cache would return the same answer for all repeats of a request, since the task samples with a "
                "temperature but without do_sample: add do_sample=true to its generation_kwargs (or to --gen_kwargs), and "
                "resume=FILE to --model_args, which stores each repeat separately"
            )

"""lm_eval's ``--use_cache``, kept to one model and away from answers that are drawn.

The keys of that cache are made of the request alone, so by itself the cache of one model answers for another. It
therefore holds one more entry: the identity of the model whose answers it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from birdie_zmq.client.batching import Prompt
from birdie_zmq.errors import UsageError

MARK = "birdie_zmq: model identity"
"""The key of that entry; lm_eval's own are hexadecimal digits."""


def claim(cache: Any, identity: str) -> None:
    """Mark a new cache as a model's; a cache that is marked so already stays as it is.

    Args:
        cache: The ``SqliteDict`` that lm_eval has opened.
        identity: The model's, as its description gives it.

    Raises:
        UsageError: It has another model's answers, or those of nobody knows which.
    """
    if MARK in cache:
        if cache[MARK] == identity:
            return
        whose = "holds the answers of another model, or of this one with other model_args or weights"
    elif cache:
        whose = "does not say which model its answers are of (another backend made it, or an older birdie-zmq)"
    else:
        cache[MARK] = identity
        cache.commit()  # and wait, so that no answer is on the disk before it
        return
    raise UsageError(f"the cache {cache.filename} {whose}: give another path to --use_cache, or delete that file")


def is_passed_over(kind: str, arguments: Sequence[Any]) -> bool:
    """Whether lm_eval never reads its cache for a request, so that nothing should be put there."""
    return kind == "generate_until" and bool(arguments[1].get("do_sample", False))


def refuse_repeats(prompts: Sequence[Prompt], settings: Sequence[Mapping[str, Any]]) -> None:
    """Refuse equal prompts whose answers are drawn and would be cached: the next run would have one answer for all.

    Args:
        prompts: All of one call.
        settings: The ``generation_kwargs`` of each, as the task gave them.

    Raises:
        UsageError: There are such prompts.
    """
    drawn = Counter((prompt.text, prompt.settings) for prompt in prompts if prompt.key is not None)
    for prompt, given in zip(prompts, settings, strict=True):
        if not given.get("do_sample", False) and drawn[prompt.text, prompt.settings] > 1:
            raise UsageError(
                "--use_cache would give the repeats of a request one and the same answer, since the task draws tokens "
                "by a temperature alone: add do_sample=true to its generation_kwargs (or to --gen_kwargs), and resume=FILE "
                "to --model_args, which keeps the answers of repeats apart"
            )

"""Describe a model_type that is not supported: the supported family whose configuration is most like it, and the difference."""

from __future__ import annotations

from collections.abc import Collection

from birdie_zmq.models.transformers_import import transformers_without_torch

_LEAST_SIMILARITY = 0.5
"""A family that shares a smaller part of its keys is not named."""

_MAX_LISTED = 8


def describe_unknown(model_type: str, families: Collection[str]) -> str:
    """Return what sets a model_type apart from the nearest of the supported families.

    Two configurations are compared by the names of their keys, as transformers defines them; those that all models have
    do not count.
    """
    with transformers_without_torch() as transformers:
        common = set(transformers.PreTrainedConfig().to_dict())

        def keys(name: str) -> set[str]:
            return set(transformers.AutoConfig.for_model(name).get_text_config().to_dict()) - common

        try:
            found = keys(model_type)
        except Exception:  # noqa: BLE001 - it needs arguments, or transformers does not know it: many types are possible
            return f"transformers {transformers.__version__} has no such configuration to compare with, either"
        known = {name: keys(name) for name in sorted(families)}
    similarity = {name: len(known[name] & found) / len(known[name] | found) for name in known}
    nearest = max(known, key=lambda name: similarity[name])
    if similarity[nearest] < _LEAST_SIMILARITY:
        return "no supported family has a similar configuration"
    return f"the most similar supported family is {nearest}, {_difference(found - known[nearest])}"


def _difference(keys: set[str]) -> str:
    if not keys:
        return "which has the same keys but another architecture"
    listed = sorted(keys)
    rest = len(listed) - _MAX_LISTED
    names = ", ".join(listed[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
    return f"which does not have the keys {names}"

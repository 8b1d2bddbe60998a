"""The variants of each model family that are compared with transformers: one module for each family."""

from __future__ import annotations

import importlib
import pkgutil

from tests.parity.variants.base import MAX_LENGTH as MAX_LENGTH
from tests.parity.variants.base import Variant as Variant


def _collect() -> dict[str, Variant]:
    found: dict[str, Variant] = {}
    for module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        found |= getattr(importlib.import_module(f"{__name__}.{module}"), "VARIANTS", {})
    return found


VARIANTS = _collect()

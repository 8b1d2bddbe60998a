"""Attention of the built-in models: one interface, and an implementation for each platform."""

from birdie_zmq.models.attention.interface import (
    CPU,
    AttentionImplementation,
    AttentionMetadata,
    AttentionOptions,
    CachedLayer,
    CachedTokens,
    CacheSize,
    KeysValues,
    KVCache,
    Target,
)
from birdie_zmq.models.attention.selection import attention_for, default_target

__all__ = [
    "CPU",
    "AttentionImplementation",
    "AttentionMetadata",
    "AttentionOptions",
    "CacheSize",
    "CachedLayer",
    "CachedTokens",
    "KVCache",
    "KeysValues",
    "Target",
    "attention_for",
    "default_target",
]

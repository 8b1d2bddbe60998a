"""Items: the requests or answers of a message, which only their sender and their final receiver encode and decode.

Each item is msgpack by itself, and the items of a message are joined. The sizes beside them let a broker count the items,
and lease or answer any of them, without decoding one. `packing` encodes and decodes the items.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import numpy as np
from msgspec import Struct

from birdie_zmq.types import Indices

MAX_ITEMS = 2**18
MAX_ITEM_BYTES = 16 * 2**20
"""Bytes of one item: with one character beyond the Basic Multilingual Plane, Python stores four bytes per character."""

WorkKind = Literal["loglikelihood", "rolling", "generate", "chat", "describe"]


class Items(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Encoded items: ``sizes`` int32[n] holds the bytes of each, ``data`` the items one after another.

    Raises:
        ValueError: The sizes do not match the data, or exceed a limit.
    """

    sizes: Indices
    data: bytes

    def __post_init__(self) -> None:
        if len(self.sizes) > MAX_ITEMS:
            raise ValueError(f"{len(self.sizes):,} items are over the limit of {MAX_ITEMS:,} per message")
        if len(self.sizes) and not 0 < self.sizes.min() <= self.sizes.max() <= MAX_ITEM_BYTES:
            raise ValueError(f"an item has no bytes, or more than the limit of {MAX_ITEM_BYTES:,}")
        if int(self.sizes.sum(dtype=np.int64)) != len(self.data):
            raise ValueError("the sizes of the items do not add up to their data")

    def __len__(self) -> int:
        return len(self.sizes)

    @classmethod
    def join(cls, encoded: Sequence[bytes]) -> Items:
        """Join items that are encoded one by one."""
        return cls(sizes=np.fromiter(map(len, encoded), np.int32, len(encoded)), data=b"".join(encoded))

    def select(self, positions: Sequence[int]) -> Items:
        """Return some of the items."""
        sizes = self.sizes.tolist()
        ends = list(accumulate(sizes))
        return Items.join([self.data[ends[i] - sizes[i] : ends[i]] for i in positions])


class PackedWork(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Work with encoded items; ``shared`` holds the encoded parameters of all items."""

    kind: WorkKind
    items: Items
    shared: bytes = b""

    def __len__(self) -> int:
        return len(self.items)

    def select(self, indices: Sequence[int]) -> PackedWork:
        """Return the same work for some of its items."""
        return PackedWork(kind=self.kind, items=self.items.select(indices), shared=self.shared)

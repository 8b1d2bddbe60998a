"""Items: the requests of a message, which only their sender and their final receiver encode and decode; and answers.

Each item is msgpack by itself, and the items of a message are joined. The sizes beside them let a broker count the items,
and lease or answer any of them, without decoding one. `packing` encodes and decodes the items.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Literal

from msgspec import Meta, Struct

MAX_ITEMS = 2**18
MAX_ITEM_BYTES = 16 * 2**20
"""Bytes of one item: with one character beyond the Basic Multilingual Plane, Python stores four bytes per character."""

Indices = Annotated[list[Annotated[int, Meta(ge=0, lt=MAX_ITEMS)]], Meta(max_length=MAX_ITEMS)]
Sizes = Annotated[list[Annotated[int, Meta(ge=1, le=MAX_ITEM_BYTES)]], Meta(max_length=MAX_ITEMS)]

WorkKind = Literal["loglikelihood", "rolling", "generate", "chat", "describe", "completion"]


class Items(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Encoded items: ``sizes`` holds the number of bytes of each, ``data`` the items one after another.

    Raises:
        ValueError: The sizes do not add up to the data.
    """

    sizes: Sizes
    data: bytes

    def __post_init__(self) -> None:
        if sum(self.sizes) != len(self.data):
            raise ValueError("the sizes of the items do not add up to their data")

    def __len__(self) -> int:
        return len(self.sizes)

    @classmethod
    def join(cls, encoded: Sequence[bytes]) -> Items:
        """Join items that are encoded one by one."""
        return cls(sizes=list(map(len, encoded)), data=b"".join(encoded))

    def select(self, positions: Sequence[int]) -> Items:
        """Return some of the items."""
        ends = list(accumulate(self.sizes))
        return Items.join([self.data[ends[i] - self.sizes[i] : ends[i]] for i in positions])

    def split(self) -> list[bytes]:
        """Return the bytes of each item."""
        return [self.data[end - size : end] for end, size in zip(accumulate(self.sizes), self.sizes, strict=True)]


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


class PackedAnswers(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Encoded answers, which only the client decodes; ``count`` is their number."""

    count: Annotated[int, Meta(ge=0, le=MAX_ITEMS)]
    data: bytes

    def __len__(self) -> int:
        return self.count

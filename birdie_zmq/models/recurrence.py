"""The state of a recurrence: of fixed size for each text, in place of keys and values for each token.

A recurrence (`decoder_layer.Recurrence`) computes a whole step at once, by a scan or in chunks, and keeps of a text the
state after its last token. Such a state can be copied, so texts fork after a prefix that they share. It holds no token by
itself, so no mask can hide some of them, and trees of texts in a row cannot be computed.
"""

from __future__ import annotations

from typing import NamedTuple

from birdie_zmq.models.weight_map import ShardSpec


class StateSpec(NamedTuple):
    """An array of the state of one text in one layer.

    Attributes:
        shape: Its shape.
        dtype: Its dtype; None for that of the model.
        shard: How it may be sharded over devices; None if it is replicated.
    """

    shape: tuple[int, ...]
    dtype: str | None = None
    shard: ShardSpec | None = None

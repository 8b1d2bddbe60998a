"""msgpack with limits: bytes from another process are decoded into plain values of bounded size.

Extension types, duplicate keys, and maps, lists and texts above the limits are rejected. Maps in the form of msgpack-numpy
become arrays, checked by `arrays`.
"""

from __future__ import annotations

from typing import Any

import msgpack

from birdie_zmq.errors import MalformedMessage
from birdie_zmq.protocol.arrays import unpack_array

MAX_FRAME_BYTES = 64 * 2**20
MAX_ELEMENTS = 2**20
"""List items, map entries and array elements of one frame: a megabyte of nested empty lists would take 70 MB."""
MAX_MAP_ENTRIES = 4096
MAX_TEXT_BYTES = 16 * 2**20
"""UTF-8 bytes of one text: with one character beyond the Basic Multilingual Plane, Python stores four bytes per character."""


def unpack(data: bytes) -> Any:
    """Decode msgpack into plain values and arrays.

    Raises:
        MalformedMessage: The bytes are not msgpack, hold an extension type or a key twice, or exceed a limit.
    """
    elements = 0

    def count(added: int) -> None:
        nonlocal elements
        elements += added + 1
        if elements > MAX_ELEMENTS:
            raise MalformedMessage(f"a frame holds more than {MAX_ELEMENTS:,} elements")

    def on_list(items: list[Any]) -> list[Any]:
        count(len(items))
        return items

    def on_map(pairs: list[tuple[Any, Any]]) -> Any:
        count(len(pairs))
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise MalformedMessage("a frame holds a map that has a key twice")
        if b"nd" not in entries:
            return entries
        array = unpack_array(entries)
        count(array.size)
        return array

    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            list_hook=on_list,
            object_pairs_hook=on_map,
            ext_hook=_refuse_extension,
            max_str_len=MAX_TEXT_BYTES,
            max_bin_len=MAX_FRAME_BYTES,
            # msgpack allocates a list before it reads the items, and each item takes at least one byte.
            max_array_len=min(MAX_ELEMENTS, len(data)),
            max_map_len=MAX_MAP_ENTRIES,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        text = str(error)[:400] or type(error).__name__  # for invalid UTF-8 it names one byte and its position
    else:
        return value
    # Raised outside of the except clause: the original error would be sent as the cause.
    raise MalformedMessage(f"a frame is not valid msgpack for this protocol: {text}")


def _refuse_extension(code: int, data: bytes) -> Any:
    raise MalformedMessage(f"a frame holds an extension type ({code}, {len(data)} bytes)")

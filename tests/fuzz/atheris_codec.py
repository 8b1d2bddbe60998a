"""Fuzzing the codec with libFuzzer, which searches for frames that reach new lines of code: ``python -m tests.fuzz.atheris_codec -runs=N``.

It needs the package atheris, which ``tox -e atheris`` installs: it has wheels for Linux only.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["birdie_zmq", "msgpack"]):
    from birdie_zmq.errors import ProtocolError
    from birdie_zmq.protocol import messages as m
    from birdie_zmq.protocol.codec import decoder, encode
    from tests.fuzz.frames import SAMPLES, unpack_items

_decode = decoder(m.Message)


def try_frame(frame: bytes) -> None:
    """Decode a frame and its items to values that can be encoded again, or a typed error; libFuzzer reports other exceptions."""
    try:
        message = _decode(frame)
    except ProtocolError:
        return
    encode(message)
    unpack_items(message)


def main() -> None:
    """Start with a frame of each message, in addition to a corpus on the command line."""
    with tempfile.TemporaryDirectory() as corpus:
        for number, sample in enumerate(SAMPLES):
            (Path(corpus) / str(number)).write_bytes(encode(sample))
        given = sys.argv[1:]
        atheris.Setup([sys.argv[0], "-max_len=4096", "-rss_limit_mb=1024", *given, corpus], try_frame)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

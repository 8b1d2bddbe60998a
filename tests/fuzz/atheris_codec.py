"""The codec under libFuzzer, which looks for frames that reach new lines: ``python -m tests.fuzz.atheris_codec -runs=N``.

It needs the package atheris, which ``tox -e atheris`` installs: it has wheels for Linux only.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["birdie_zmq", "msgpack", "msgpack_numpy"]):
    from birdie_zmq.errors import ProtocolError
    from birdie_zmq.protocol import messages as m
    from birdie_zmq.protocol.codec import decoder, encode
    from tests.fuzz.frames import SAMPLES

_decode = decoder(m.Message)


def try_frame(frame: bytes) -> None:
    """A message that can be sent on, or a typed refusal; libFuzzer reports whatever else is raised."""
    try:
        message = _decode(frame)
    except ProtocolError:
        return
    encode(message)


def main() -> None:
    """Begin with a frame of each message, unless the command line names a corpus."""
    with tempfile.TemporaryDirectory() as corpus:
        for number, sample in enumerate(SAMPLES):
            (Path(corpus) / str(number)).write_bytes(encode(sample))
        given = sys.argv[1:]
        atheris.Setup([sys.argv[0], "-max_len=4096", "-rss_limit_mb=1024", *given, corpus], try_frame)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

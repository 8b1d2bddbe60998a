"""Capture every frame that passes an interface: ``python tests/hosts/capture.py INTERFACE FILE``. Linux, as root."""

import socket
import sys
from pathlib import Path

ALL_PROTOCOLS = 3


def main(interface: str, file: str) -> None:
    """Capture frames until the process is ended."""
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS)) as raw,
        Path(file).open("wb") as out,
    ):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
        raw.bind((interface, 0))
        sys.stdout.write("capturing\n")
        sys.stdout.flush()
        while True:
            out.write(raw.recv(1 << 18))
            out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])

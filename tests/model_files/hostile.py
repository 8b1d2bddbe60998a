"""A page for tests that sends its agent what is meant to harm it, over the socket that the model process has.

The folder ``payloads`` in its keywords holds the frames; each start of the process takes one away and sends it.
"""

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any


def load_model(model_tag: str, payloads: str = "", **kwargs: Any) -> Any:
    left = sorted(Path(payloads).iterdir())
    if not left:
        raise RuntimeError("nothing is left to send")
    frame = left[0].read_bytes()
    left[0].unlink()
    with socket.socket(fileno=os.dup(int(sys.argv[1]))) as agent:
        agent.sendall(len(frame).to_bytes(4, "big") + frame)
    time.sleep(60)  # The agent ends this process.
    return None


class Bytes:
    bos_token_id = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode()


def load_tokenizer(model_tag: str, **kwargs: Any) -> Bytes:
    return Bytes()

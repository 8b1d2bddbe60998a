"""A model file for tests that sends malicious frames to its agent, over the socket of the model process.

The folder ``payloads`` in its arguments holds the frames; each start of the process removes one and sends it.
"""

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any


def load_model(model_tag: str, payloads: str = "", **kwargs: Any) -> Any:
    remaining = sorted(Path(payloads).iterdir())
    if not remaining:
        raise RuntimeError("no payload remains")
    frame = remaining[0].read_bytes()
    remaining[0].unlink()
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

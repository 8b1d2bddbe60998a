"""Payloads that make the decoder of msgpack-numpy run code or crash are rejected by real processes."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from birdie_zmq.errors import MalformedMessage, ModelProcessDied
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.dealer import Dealer
from birdie_zmq.protocol.endpoints import parse_endpoint
from birdie_zmq.protocol.packing import pack_answers
from birdie_zmq.protocol.transport import wait
from harness_model import BirdieZMQ
from tests.integration.conftest import ROOT, Programs, Served, wait_until

DECODE = decoder(m.BrokerToClient | m.BrokerToWorker | m.Refusal)
KINDS: dict[str, tuple[bytes, object, list[int]]] = {
    "pickle": (b"O", "|O", [1]),
    "object-pointers-in-a-field": (b"V", [["field", "|O"]], [1]),
    "object-pointers": (b"", "|O", [1]),
    "zero-byte-elements": (b"", "|S0", [10**12]),
}


class MakesFolder:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def payload(kind: str, marker: Path) -> bytes:
    """Return a message that is valid except for an array, which is made to create the marker or to crash its receiver."""
    answered = m.LeaseAnswered(lease=1, indices=[0], answers=pack_answers("generate", [""]))
    envelope = msgpack.unpackb(encode(answered))
    array_kind, dtype, shape = KINDS[kind]
    # Raw object pointers and zero-byte elements cannot hold a pickle.
    data = pickle.dumps(MakesFolder(marker)) if array_kind == b"O" else b"\x41" * 8 if dtype != "|S0" else b""
    envelope[1]["indices"] = {b"nd": True, b"type": dtype, b"kind": array_kind, b"shape": shape, b"data": data}
    frame: bytes = msgpack.packb(envelope)
    return frame


def test_a_decoder_that_loads_pickles_would_run_the_payload(tmp_path: Path) -> None:
    pickle.loads(msgpack.unpackb(payload("pickle", tmp_path / "marker"))[1]["indices"][b"data"])
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_broker_rejects_the_payload_and_continues(served: Served, tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "marker"
    with Dealer(parse_endpoint(served.endpoint)) as dealer:

        def answer_to(frame: bytes) -> Any:
            dealer.send(frame)
            while (answer := dealer.receive()) is None:
                wait(dealer, 0.1)
                assert served.broker.process.poll() is None
            return DECODE(answer)

        refusal = answer_to(payload(kind, marker))
        assert isinstance(refusal, m.Refusal)
        assert isinstance(refusal.error.to_error(), MalformedMessage)
        assert isinstance(answer_to(encode(m.OpenSession(package_version="1"))), m.SessionOpened)
        assert isinstance(answer_to(encode(m.Ping())), m.Pong)
    assert not marker.exists()


def test_agent_kills_a_model_process_that_sends_the_payload_and_continues(
    programs: Programs, model_files: Path, tmp_path: Path
) -> None:
    marker, payloads = tmp_path / "marker", tmp_path / "payloads"
    payloads.mkdir()
    for kind in list(KINDS)[:3]:  # The agent tries to load a model three times.
        (payloads / kind).write_bytes(payload(kind, marker))
    _, endpoint = programs.broker()
    worker = programs.worker(endpoint, model_files / "hostile.py")

    with pytest.raises(ModelProcessDied, match="3 times while loading"):
        BirdieZMQ(model_tag="any", endpoint=endpoint, payloads=str(payloads))

    assert worker.output.count("the model process sent a malformed message") == 3
    assert not list(payloads.iterdir())
    assert not marker.exists()
    with pytest.raises(Exception, match="no payload remains"):
        BirdieZMQ(model_tag="any", endpoint=endpoint, payloads=str(payloads))


def test_model_process_exits_if_its_agent_sends_the_payload(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as trace:
        descriptors = [theirs.fileno(), trace.fileno()]
        process = subprocess.Popen(
            [sys.executable, "-m", "birdie_zmq.worker.model_server", *map(str, descriptors), str(os.getpid())],
            pass_fds=descriptors,
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        try:
            for kind in KINDS:
                frame = payload(kind, marker)
                ours.sendall(len(frame).to_bytes(4, "big") + frame)
            wait_until(lambda: process.poll() is not None, "the end of the model process", 60)
        finally:
            process.kill()
            _, stderr = process.communicate()
    assert b"Traceback" not in stderr
    assert not marker.exists()

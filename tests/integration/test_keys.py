"""A broker with keys, a worker and runs that hold some, as people start them: what is scored, refused and overheard."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from birdie_zmq.errors import BrokerUnavailable, NotAllowed, UnknownModelTag, UsageError
from birdie_zmq.models.resolution import BUILT_IN
from birdie_zmq.protocol.security.keys import new_key, revoke_key
from harness_model import BirdieZMQ
from tests.integration.conftest import DEADLINE_S, Programs, Served, wait_until

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
"""How a connection of ZeroMQ without keys begins."""
CONTEXT, CONTINUATION = "What nobody else may read: ", "the moon is a lantern."


class Tap:
    """A TCP port that passes everything on to another, both ways, and keeps a copy."""

    def __init__(self, endpoint: str) -> None:
        self._port = int(endpoint.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._heard = bytearray()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def heard(self) -> bytes:
        return bytes(self._heard)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here = self._listener.accept()[0]
                there = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [here, there]
                for source, sink in ((here, there), (there, here)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 16):
                self._heard += chunk
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for each in [self._listener, *self._sockets]:
            each.close()


@contextlib.contextmanager
def tapped(endpoint: str) -> Iterator[Tap]:
    tap = Tap(endpoint)
    try:
        yield tap
    finally:
        tap.close()


def score(endpoint: str, key_file: Path | None = None) -> list[tuple[float, bool]]:
    keys: dict[str, Any] = {} if key_file is None else {"key_file": str(key_file)}
    with BirdieZMQ(model_tag="pair", endpoint=endpoint, **keys) as lm:
        return lm.loglikelihood([Instance("loglikelihood", {}, (CONTEXT, CONTINUATION), 0)], disable_tqdm=True)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    new_key(folder, "client", "alice", tmp_path / "alice.key")
    new_key(folder, "worker", "gpu1", tmp_path / "gpu1.key")
    return folder


def test_a_run_with_keys_scores_the_same_and_nobody_can_read_along(
    programs: Programs, served: Served, pages: Path, tmp_path: Path, keys: Path
) -> None:
    with tapped(served.endpoint) as tap:
        without_keys = score(tap.endpoint)
        assert CONTEXT.encode() in tap.heard
        assert CONTINUATION.encode() in tap.heard

    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--keys", str(keys))
    with tapped(endpoint) as tap:
        worker = programs.worker(tap.endpoint, pages / "letters.py", "--key-file", str(tmp_path / "gpu1.key"))
        assert score(tap.endpoint, tmp_path / "alice.key") == without_keys
        heard = tap.heard
        assert len(heard) > 2_000
        assert not any(words.encode() in heard for words in (CONTEXT, CONTINUATION, "loglikelihood", "pair"))
        assert worker.stop() == 0
    assert broker.stop() == 0


def test_who_is_not_let_in_learns_why_and_the_run_of_another_goes_on(
    programs: Programs, pages: Path, tmp_path: Path, keys: Path
) -> None:
    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--keys", str(keys))
    worker = programs.worker(endpoint, pages / "letters.py", "--key-file", str(tmp_path / "gpu1.key"))
    with BirdieZMQ(model_tag="pair", endpoint=endpoint, key_file=str(tmp_path / "alice.key")) as lm:
        with pytest.raises(NotAllowed, match="wants a key"):
            score(endpoint)
        with pytest.raises(NotAllowed, match="the key of worker 'gpu1' may not send OpenSession"):
            score(endpoint, tmp_path / "gpu1.key")
        new_key(tmp_path / "other", "client", "alice", tmp_path / "other.key")
        with pytest.raises(BrokerUnavailable, match=r"another key than the one in \S+other\.key"):
            score(endpoint, tmp_path / "other.key")

        request = Instance("loglikelihood", {}, (CONTEXT, CONTINUATION), 0)
        assert len(lm.loglikelihood([request], disable_tqdm=True)) == 1

        revoke_key(keys, "client", "alice")
        wait_until(lambda: "the key of client 'alice' is let in no more" in broker.output, "the revocation")
        with pytest.raises(NotAllowed, match="the key of client 'alice' has been revoked"):
            lm.loglikelihood([request], disable_tqdm=True)
    with pytest.raises(NotAllowed, match="refuses this key, that of client 'alice'"):
        score(endpoint, tmp_path / "alice.key")

    revoke_key(keys, "worker", "gpu1")
    assert worker.process.wait(DEADLINE_S) == 2
    assert "error: the key of worker 'gpu1' has been revoked" in worker.output
    broker.wait_for("refused connections: ")
    assert broker.stop() == 0
    assert CONTEXT not in broker.output


@pytest.mark.parametrize("key", ["alice.key", None])
def test_a_worker_that_is_not_let_in_ends_with_the_reason(
    programs: Programs, pages: Path, tmp_path: Path, keys: Path, key: str | None
) -> None:
    _, endpoint = programs.broker("tcp://127.0.0.1:*", "--keys", str(keys))
    options = [] if key is None else ["--key-file", str(tmp_path / key)]
    worker = programs.start("-m", "workers.jax_worker", "--connect", endpoint, "--built-in", *options)

    assert worker.process.wait(DEADLINE_S) == 2
    expected = "wants a key" if key is None else "the key of client 'alice' may not send RegisterWorker"
    assert expected in worker.output


def test_whoever_is_let_in_chooses_only_from_what_the_worker_offers(
    programs: Programs, tmp_path: Path, keys: Path
) -> None:
    for folder in ("offered", "hidden"):
        shutil.copytree(BUILT_IN["demo"], tmp_path / folder / "mine")
    _, endpoint = programs.broker("tcp://127.0.0.1:*", "--keys", str(keys))
    options = ["--built-in", "--device", "cpu", "--key-file", str(tmp_path / "gpu1.key")]
    options += ["--checkpoints", str(tmp_path / "offered")]
    worker = programs.start("-m", "workers.jax_worker", "--connect", endpoint, *options)
    worker.wait_for("registered with the broker")
    assert f"may name: the demo, those in {tmp_path}/offered" in worker.output

    key_file = tmp_path / "alice.key"
    with BirdieZMQ(model_tag="mine", endpoint=endpoint, key_file=str(key_file)) as lm:
        assert lm.get_model_info()["model_tag"] == "mine"
    for tag in (str(tmp_path / "hidden" / "mine"), "../hidden/mine"):
        with pytest.raises(UnknownModelTag, match=r"Whoever starts the worker says what it offers"):
            BirdieZMQ(model_tag=tag, endpoint=endpoint, key_file=str(key_file))
    with pytest.raises(UnknownModelTag, match=r"Whoever starts the worker says what it offers"):
        BirdieZMQ(
            model_tag="mine", tokenizer=str(tmp_path / "hidden" / "mine"), endpoint=endpoint, key_file=str(key_file)
        )


def test_all_addresses_are_served_with_keys_only(programs: Programs, tmp_path: Path, keys: Path) -> None:
    refused = programs.start("broker.py", "--bind", "tcp://0.0.0.0:*")
    assert refused.process.wait(DEADLINE_S) == 2
    for words in ("birdie-zmq keys new client NAME", "--keys", "reached from other machines"):
        assert words in refused.output

    broker, endpoint = programs.broker("tcp://0.0.0.0:*", "--keys", str(keys))
    assert re.fullmatch(r"tcp://0\.0\.0\.0:\d+", endpoint)
    assert f"for the keys in {keys}" in broker.output
    port = endpoint.rpartition(":")[2]
    with pytest.raises(NotAllowed, match="wants a key"):
        score(f"tcp://127.0.0.1:{port}")
    assert broker.stop() == 0


def test_a_key_file_or_folder_that_others_can_open_is_refused_with_the_way_to_close_it(
    programs: Programs, tmp_path: Path, keys: Path
) -> None:
    (tmp_path / "alice.key").chmod(0o644)
    with pytest.raises(UsageError, match=r"chmod 600 \S+alice\.key"):
        score("tcp://127.0.0.1:1", tmp_path / "alice.key")

    keys.chmod(0o755)
    broker = programs.start("broker.py", "--bind", "tcp://127.0.0.1:*", "--keys", str(keys))
    assert broker.process.wait(DEADLINE_S) == 2
    assert f"chmod 700 {keys}" in broker.output


def test_a_flood_of_strangers_neither_stops_the_broker_nor_fills_its_log(
    programs: Programs, tmp_path: Path, keys: Path
) -> None:
    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--keys", str(keys))
    port = int(endpoint.rpartition(":")[2])
    began = time.monotonic()
    for begins in [GREETING, b"GET / HTTP/1.1\r\nHost: broker\r\nAccept: */*\r\n\r\n" * 2] * 1_500:
        with socket.create_connection(("127.0.0.1", port)) as scanner, contextlib.suppress(ConnectionError):
            scanner.sendall(begins)
            while scanner.recv(1_000):
                pass
    broker.wait_for("refused connections: ")
    assert broker.output.count("refused connections: ") <= time.monotonic() - began + 2
    worker_key = str(tmp_path / "gpu1.key")
    worker = programs.start("-m", "workers.jax_worker", "--connect", endpoint, "--built-in", "--key-file", worker_key)
    worker.wait_for("registered with the broker")
    assert worker.stop() == 0
    assert broker.stop() == 0

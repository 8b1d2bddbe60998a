"""Brokers, workers and runs with keys, started as users do: access, rejection, revocation and encryption."""

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

from birdie_zmq.errors import BrokerUnavailable, NotAllowed, UnknownModelTag, UsageError
from birdie_zmq.models.resolution import BUILT_IN
from birdie_zmq.protocol.security.keys import new_key, revoke_key
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import DEADLINE_S, Programs, Served, wait_until

ZMTP_NULL_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
"""The first bytes of a ZeroMQ connection without keys (ZMTP 3.0, NULL mechanism)."""
CONTEXT, CONTINUATION = "What nobody else may read: ", "the moon is a lantern."


class RecordingProxy:
    """A TCP proxy that forwards all bytes in both directions and keeps a copy."""

    def __init__(self, endpoint: str) -> None:
        self._port = int(endpoint.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._recorded = bytearray()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def recorded(self) -> bytes:
        return bytes(self._recorded)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                inbound = self._listener.accept()[0]
                outbound = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [inbound, outbound]
                for source, sink in ((inbound, outbound), (outbound, inbound)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 16):
                self._recorded += chunk
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for each in [self._listener, *self._sockets]:
            each.close()


@contextlib.contextmanager
def recording_proxy(endpoint: str) -> Iterator[RecordingProxy]:
    proxy = RecordingProxy(endpoint)
    try:
        yield proxy
    finally:
        proxy.close()


def score(endpoint: str, key_file: Path | None = None, **model_args: Any) -> list[tuple[float, bool]]:
    keys: dict[str, Any] = {} if key_file is None else {"key_file": str(key_file)}
    with BirdieZMQ(model_tag="pair", endpoint=endpoint, **keys, **model_args) as lm:
        return lm.loglikelihood([instance("loglikelihood", (CONTEXT, CONTINUATION), 0)], disable_tqdm=True)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    new_key(folder, "client", "alice", tmp_path / "alice.key")
    new_key(folder, "worker", "gpu1", tmp_path / "gpu1.key")
    return folder


def test_keys_keep_the_scores_and_encrypt_the_traffic(
    programs: Programs, served: Served, model_files: Path, tmp_path: Path, keys: Path
) -> None:
    with recording_proxy(served.endpoint) as proxy:
        without_keys = score(proxy.endpoint)
        assert CONTEXT.encode() in proxy.recorded
        assert CONTINUATION.encode() in proxy.recorded

    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--keys", str(keys))
    with recording_proxy(endpoint) as proxy:
        worker = programs.worker(proxy.endpoint, model_files / "letters.py", "--key-file", str(tmp_path / "gpu1.key"))
        assert score(proxy.endpoint, tmp_path / "alice.key") == without_keys
        recorded = proxy.recorded
        assert len(recorded) > 2_000
        assert not any(text.encode() in recorded for text in (CONTEXT, CONTINUATION, "loglikelihood", "pair"))
        assert worker.stop() == 0
    assert broker.stop() == 0


def test_keys_that_their_group_may_read_serve_only_with_the_option(
    programs: Programs, served: Served, model_files: Path, tmp_path: Path, keys: Path
) -> None:
    """As on a mounted secret: folders of mode 0750, files of mode 0440."""
    client_key, worker_key = tmp_path / "alice.key", tmp_path / "gpu1.key"
    for path in (keys, *keys.rglob("*"), client_key, worker_key):
        path.chmod(0o750 if path.is_dir() else 0o440)
    refused = programs.start("broker.py", "--bind", "tcp://127.0.0.1:*", "--keys", str(keys))
    assert refused.process.wait(DEADLINE_S) == 2
    assert "--allow-group-readable-keys" in refused.output
    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--keys", str(keys), "--allow-group-readable-keys")
    refused = programs.start(
        "-m", "workers.jax_worker", "--connect", endpoint, "--key-file", str(worker_key), "--built-in"
    )
    assert refused.process.wait(DEADLINE_S) == 2
    assert "--allow-group-readable-keys" in refused.output
    with pytest.raises(UsageError, match="allow_group_readable_keys=true in model_args"):
        score(endpoint, client_key)

    options = ["--key-file", str(worker_key), "--allow-group-readable-keys"]
    worker = programs.worker(endpoint, model_files / "letters.py", *options)
    assert score(endpoint, client_key, allow_group_readable_keys=True) == score(served.endpoint)
    assert worker.stop() == 0
    assert broker.stop() == 0


def test_rejected_client_gets_the_reason_and_other_runs_continue(
    programs: Programs, model_files: Path, tmp_path: Path, keys: Path
) -> None:
    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--keys", str(keys))
    worker = programs.worker(endpoint, model_files / "letters.py", "--key-file", str(tmp_path / "gpu1.key"))
    with BirdieZMQ(model_tag="pair", endpoint=endpoint, key_file=str(tmp_path / "alice.key")) as lm:
        with pytest.raises(NotAllowed, match="requires a key"):
            score(endpoint)
        with pytest.raises(NotAllowed, match="the key of worker 'gpu1' may not send OpenSession"):
            score(endpoint, tmp_path / "gpu1.key")
        new_key(tmp_path / "other", "client", "alice", tmp_path / "other.key")
        with pytest.raises(BrokerUnavailable, match=r"another key than the one in \S+other\.key"):
            score(endpoint, tmp_path / "other.key")

        request = instance("loglikelihood", (CONTEXT, CONTINUATION), 0)
        assert len(lm.loglikelihood([request], disable_tqdm=True)) == 1

        revoke_key(keys, "client", "alice")
        wait_until(lambda: "the key of client 'alice' is no longer allowed" in broker.output, "the revocation")
        with pytest.raises(NotAllowed, match="the key of client 'alice' has been revoked"):
            lm.loglikelihood([request], disable_tqdm=True)
    with pytest.raises(NotAllowed, match="refuses the key of client 'alice'"):
        score(endpoint, tmp_path / "alice.key")

    revoke_key(keys, "worker", "gpu1")
    assert worker.process.wait(DEADLINE_S) == 2
    assert "error: the key of worker 'gpu1' has been revoked" in worker.output
    broker.wait_for("refused connections: ")
    assert broker.stop() == 0
    assert CONTEXT not in broker.output


@pytest.mark.parametrize("key", ["alice.key", None])
def test_rejected_worker_exits_with_the_reason(
    programs: Programs, model_files: Path, tmp_path: Path, keys: Path, key: str | None
) -> None:
    _, endpoint = programs.broker("tcp://127.0.0.1:*", "--keys", str(keys))
    options = [] if key is None else ["--key-file", str(tmp_path / key)]
    worker = programs.start("-m", "workers.jax_worker", "--connect", endpoint, "--built-in", *options)

    assert worker.process.wait(DEADLINE_S) == 2
    expected = "requires a key" if key is None else "the key of client 'alice' may not send RegisterWorker"
    assert expected in worker.output


def test_client_can_use_only_checkpoints_that_the_worker_allows(programs: Programs, tmp_path: Path, keys: Path) -> None:
    for folder in ("offered", "hidden"):
        shutil.copytree(BUILT_IN["demo"], tmp_path / folder / "mine")
    _, endpoint = programs.broker("tcp://127.0.0.1:*", "--keys", str(keys))
    options = ["--built-in", "--device", "cpu", "--key-file", str(tmp_path / "gpu1.key")]
    options += ["--checkpoints", str(tmp_path / "offered")]
    worker = programs.start("-m", "workers.jax_worker", "--connect", endpoint, *options)
    worker.wait_for("registered with the broker")
    assert f"built-in models: the demo, those in {tmp_path}/offered" in worker.output

    key_file = tmp_path / "alice.key"
    with BirdieZMQ(model_tag="mine", endpoint=endpoint, key_file=str(key_file)) as lm:
        assert lm.get_model_info()["model_tag"] == "mine"
    for tag in (str(tmp_path / "hidden" / "mine"), "../hidden/mine"):
        with pytest.raises(UnknownModelTag, match=r"--checkpoints FOLDER and --hub of the worker set which"):
            BirdieZMQ(model_tag=tag, endpoint=endpoint, key_file=str(key_file))
    with pytest.raises(UnknownModelTag, match=r"--checkpoints FOLDER and --hub of the worker set which"):
        BirdieZMQ(
            model_tag="mine", tokenizer=str(tmp_path / "hidden" / "mine"), endpoint=endpoint, key_file=str(key_file)
        )


def test_binding_all_interfaces_requires_keys(programs: Programs, tmp_path: Path, keys: Path) -> None:
    without_keys = programs.start("broker.py", "--bind", "tcp://0.0.0.0:*")
    assert without_keys.process.wait(DEADLINE_S) == 2
    for text in ("birdie-zmq keys new client NAME", "--keys", "reached from other machines"):
        assert text in without_keys.output

    broker, endpoint = programs.broker("tcp://0.0.0.0:*", "--keys", str(keys))
    assert re.fullmatch(r"tcp://0\.0\.0\.0:\d+", endpoint)
    assert f"for the keys in {keys}" in broker.output
    port = endpoint.rpartition(":")[2]
    with pytest.raises(NotAllowed, match="requires a key"):
        score(f"tcp://127.0.0.1:{port}")
    assert broker.stop() == 0


def test_key_file_or_folder_open_to_others_is_rejected_with_the_chmod_command(
    programs: Programs, tmp_path: Path, keys: Path
) -> None:
    (tmp_path / "alice.key").chmod(0o644)
    with pytest.raises(UsageError, match=r"chmod 600 \S+alice\.key"):
        score("tcp://127.0.0.1:1", tmp_path / "alice.key")

    keys.chmod(0o755)
    broker = programs.start("broker.py", "--bind", "tcp://127.0.0.1:*", "--keys", str(keys))
    assert broker.process.wait(DEADLINE_S) == 2
    assert f"chmod 700 {keys}" in broker.output


def test_flood_of_unknown_connections_does_not_stop_the_broker_or_fill_its_log(
    programs: Programs, tmp_path: Path, keys: Path
) -> None:
    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--keys", str(keys))
    port = int(endpoint.rpartition(":")[2])
    began = time.monotonic()
    for opening_bytes in [ZMTP_NULL_GREETING, b"GET / HTTP/1.1\r\nHost: broker\r\nAccept: */*\r\n\r\n" * 2] * 1_500:
        with socket.create_connection(("127.0.0.1", port)) as scanner, contextlib.suppress(ConnectionError):
            scanner.sendall(opening_bytes)
            while scanner.recv(1_000):
                pass
    broker.wait_for("refused connections: ")
    assert broker.output.count("refused connections: ") <= time.monotonic() - began + 2
    worker_key = str(tmp_path / "gpu1.key")
    worker = programs.start("-m", "workers.jax_worker", "--connect", endpoint, "--built-in", "--key-file", worker_key)
    worker.wait_for("registered with the broker")
    assert worker.stop() == 0
    assert broker.stop() == 0

"""Unix socket paths: on file systems without locks, after the path has been removed, and the folder of an embedded broker."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from birdie_zmq.client import Client
from birdie_zmq.errors import BrokerUnavailable, UsageError
from birdie_zmq.protocol.dealer import Dealer
from birdie_zmq.protocol.endpoints import IpcEndpoint
from birdie_zmq.protocol.ipc_path import lock_ipc_path, make_owned_folder, missing_socket_hint
from birdie_zmq.protocol.router import Router
from birdie_zmq.protocol.transport import wait
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import ModelSpec

DEADLINE_S = 20.0
NO_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


@pytest.fixture
def endpoint(tmp_path: Path) -> IpcEndpoint:
    (tmp_path / "run").mkdir(0o700)
    return IpcEndpoint(tmp_path / "run" / "broker")


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that lets locks fail, as on a file system that does not support them."""

    def fail(number: int) -> None:
        def flock(descriptor: int, operation: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    return fail


def exchange(dealer: Dealer, router: Router, frame: bytes) -> None:
    dealer.send(frame)
    deadline = time.monotonic() + DEADLINE_S
    while (received := router.receive()) is None:
        assert time.monotonic() < deadline, f"nothing came; {dealer.hint}"
        wait(router, 0.05)
    assert received.frame == frame


# --- File systems without locks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NO_LOCKS)
def test_without_locks_a_free_path_is_bound_with_a_warning(
    endpoint: IpcEndpoint, without_locks: Callable[[int], None], number: int, caplog: pytest.LogCaptureFixture
) -> None:
    without_locks(number)
    with Router(endpoint) as router, Dealer(endpoint) as dealer:
        exchange(dealer, router, b"hello")
    assert f"does not support locks ({os.strerror(number)})" in caplog.text
    assert "use a path on a local file system" in caplog.text


def test_without_locks_a_path_that_accepts_connections_is_taken(
    endpoint: IpcEndpoint, without_locks: Callable[[int], None]
) -> None:
    with Router(endpoint) as router, Dealer(endpoint) as dealer:
        without_locks(errno.ENOLCK)
        with pytest.raises(UsageError, match="another broker is bound to it"):
            Router(endpoint)
        exchange(dealer, router, b"hello")


def test_without_locks_the_socket_of_a_killed_broker_is_replaced(
    endpoint: IpcEndpoint, without_locks: Callable[[int], None]
) -> None:
    without_locks(errno.ENOLCK)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as killed:
        killed.bind(str(endpoint.path))
    with Router(endpoint) as router, Dealer(endpoint) as dealer:
        exchange(dealer, router, b"hello")


def test_a_broker_whose_lock_file_was_removed_keeps_its_path(endpoint: IpcEndpoint) -> None:
    with Router(endpoint) as router, Dealer(endpoint) as dealer:
        Path(f"{endpoint.path}.lock").unlink()
        with pytest.raises(UsageError, match="another broker is bound to it"):
            Router(endpoint)
        exchange(dealer, router, b"hello")


# --- Removed paths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("removed", [["broker"], ["broker", "broker.lock"]])
def test_a_removed_path_is_bound_again_and_connected_peers_stay(
    endpoint: IpcEndpoint, removed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with Router(endpoint) as router, Dealer(endpoint) as early:
        exchange(early, router, b"before")
        for name in removed:
            (endpoint.path.parent / name).unlink()
        router.restore_path()
        router.restore_path()
        with Dealer(endpoint) as late:
            exchange(late, router, b"from a new peer")
        exchange(early, router, b"from the connected peer")
        with pytest.raises(UsageError, match="another broker is bound to it"):
            Router(endpoint)
    assert caplog.text.count("it is bound again") == 1
    with Router(endpoint) as router, Dealer(endpoint) as dealer:
        exchange(dealer, router, b"a later broker")


def test_a_removed_folder_is_created_again_by_its_owner_only(
    endpoint: IpcEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    folder = endpoint.path.parent
    with Router(endpoint) as router:
        shutil.rmtree(folder)
        router.restore_path()
        router.restore_path()
        assert not folder.exists()
        assert caplog.text.count("so no new peer can connect") == 1
        folder.mkdir()
        router.restore_path()
        with Dealer(endpoint) as dealer:
            exchange(dealer, router, b"hello")
    with Router(endpoint, owns_folder=True) as router:
        shutil.rmtree(folder)
        router.restore_path()
        assert folder.stat().st_mode & 0o777 == 0o700
        with Dealer(endpoint) as dealer:
            exchange(dealer, router, b"hello")


def test_a_folder_that_others_can_access_is_not_used(endpoint: IpcEndpoint, caplog: pytest.LogCaptureFixture) -> None:
    folder = endpoint.path.parent
    with Router(endpoint, owns_folder=True) as router:
        shutil.rmtree(folder)
        folder.mkdir()
        folder.chmod(0o755)
        router.restore_path()
        assert "replaced by one that other users can access" in caplog.text
        assert not endpoint.path.exists()


def test_an_owned_folder_is_no_link_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "file").touch(0o600)
    for name in ("link", "file"):
        with pytest.raises(UsageError, match="replaced"):
            make_owned_folder(tmp_path / name)
    with pytest.raises(UsageError, match="cannot create the folder"):
        make_owned_folder(tmp_path / "missing" / "folder")
    make_owned_folder(tmp_path / "target")


def test_a_replaced_path_is_left_alone(endpoint: IpcEndpoint, caplog: pytest.LogCaptureFixture) -> None:
    with Router(endpoint) as router:
        endpoint.path.unlink()
        endpoint.path.write_text("precious")
        router.restore_path()
        assert endpoint.path.read_text() == "precious"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_hint_says_that_the_path_is_gone(endpoint: IpcEndpoint) -> None:
    path = endpoint.path
    assert missing_socket_hint(endpoint) == (
        f"there is no socket at {path}: no broker was started there, or the path has been removed since"
    )
    path.touch()
    assert missing_socket_hint(endpoint) == f"{path} is not a socket"
    path.unlink()
    path.parent.rmdir()
    hint = missing_socket_hint(endpoint)
    assert hint is not None
    assert hint.startswith(f"the folder {path.parent} does not exist")
    client = Client(str(endpoint), ModelSpec(tag="demo"), settings=ClientSettings(connect_s=0.2))
    with client, pytest.raises(BrokerUnavailable, match="does not exist: no broker was started there"):
        client.describe()


def test_a_path_that_cannot_be_probed_is_an_error(endpoint: IpcEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    class Denied(socket.socket):
        def connect(self, address: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket, "socket", Denied)
    with pytest.raises(UsageError, match=r"Permission denied .*run/broker"):
        lock_ipc_path(endpoint)

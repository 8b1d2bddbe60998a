"""``birdie-zmq status``: its output and its error messages."""

import io
import os
import signal

import pytest
from rich.console import Console

from birdie_zmq.broker.status.http_server import StatusServer
from birdie_zmq.broker.status.snapshot import About, Status, snapshot
from birdie_zmq.cli import main as cli
from birdie_zmq.cli import status as status_command
from birdie_zmq.errors import UsageError
from birdie_zmq.types import ModelSpec
from tests.broker.harness import CLIENT, OPEN_SESSION, WORKER, BrokerHarness, register, submit

HOSTILE = "[bold red]x[/bold red]\x1b[31m<img src=x>"


def busy_broker() -> BrokerHarness:
    harness = BrokerHarness()
    harness.send(CLIENT, OPEN_SESSION)
    harness.send(WORKER, register())
    harness.send(CLIENT, submit(1, ModelSpec(tag=HOSTILE)), submit(2, ModelSpec(tag="other"), "xyz"))
    return harness


def printed(status: Status) -> str:
    output = io.StringIO()
    Console(file=output, width=160).print(status_command.render(status))
    return output.getvalue()


def test_peer_names_are_not_rendered_as_markup() -> None:
    harness = busy_broker()
    text = printed(snapshot(harness.broker, About("1.0", "ipc:///x", 7, 900.0), harness.now))
    assert r"[bold red]x[/bold red]\x1b[31m<img src=x>" in text
    assert "\x1b" not in text
    assert "3 in 1" in text
    assert "1 waiting, 1 leased" in text


def test_broker_without_workers_shows_the_worker_command() -> None:
    assert "birdie-zmq worker" in printed(snapshot(BrokerHarness().broker, About("1.0", "ipc:///x", 7, 900.0), 1_000.0))


def test_once_prints_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    harness = busy_broker()
    with StatusServer(0, "tcp://127.0.0.1:5555") as server:
        server.update_status(harness.broker, harness.now)
        assert cli.main(["status", "--once", "--port", server.address]) == 0
    assert "tcp://127.0.0.1:5555" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_ends_the_view_also_while_an_object_is_destroyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python drops an exception that is raised then, and so would a KeyboardInterrupt."""

    class Connection:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    status = snapshot(BrokerHarness().broker, About("1.0", "ipc:///x", 7, 900.0), 1_000.0)
    fetched: list[str] = []

    def fetch(url: str) -> Status:
        fetched.append(url)
        assert len(fetched) <= 2, "the view goes on"
        if len(fetched) == 2:
            Connection()
        return status

    monkeypatch.setattr(status_command, "fetch", fetch)
    monkeypatch.setattr(status_command, "_REFRESH_S", 0.0)
    before = signal.getsignal(signal.SIGINT)

    assert cli.main(["status", "--port", "1"]) == 0

    assert len(fetched) == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_unreachable_status_page_names_the_broker_option(capsys: pytest.CaptureFixture[str]) -> None:
    with StatusServer(0, "x") as server:
        port = server.address.rstrip("/").rpartition(":")[2]
    assert cli.main(["status", "--once", "--port", port]) == 2
    error = capsys.readouterr().err
    assert "birdie-zmq broker --status-port" in error
    assert f"127.0.0.1:{port}" in error


@pytest.mark.parametrize(
    ("port", "url"),
    [
        ("5556", "http://127.0.0.1:5556/status.json"),
        ("http://localhost:1/", "http://localhost:1/status.json"),
        ("http://localhost:1/status.json", "http://localhost:1/status.json"),
    ],
)
def test_status_url_from_port_or_url(port: str, url: str) -> None:
    assert status_command.status_url(port) == url


@pytest.mark.parametrize("port", ["70000", "file:///etc/passwd", "-1", ""])
def test_neither_port_nor_url_is_rejected(port: str) -> None:
    with pytest.raises(UsageError, match="neither a port nor a URL"):
        status_command.status_url(port)


def test_durations_have_at_most_two_units() -> None:
    assert [status_command.format_duration(s) for s in (5.9, 65, 3_725, 90_000)] == [
        "5 s",
        "1 min 5 s",
        "1 h 2 min",
        "1 d 1 h",
    ]

"""``birdie-zmq status``: what it prints, and what it says where there is nothing to print."""

import io

import pytest
from rich.console import Console

from birdie_zmq.broker.status.http_server import StatusServer
from birdie_zmq.broker.status.snapshot import About, Status, snapshot
from birdie_zmq.cli import main as cli
from birdie_zmq.cli import status as status_command
from birdie_zmq.errors import UsageError
from birdie_zmq.types import ModelSpec
from tests.broker.harness import CLIENT, GREETING, WORKER, Room, register, submit

HOSTILE = "[bold red]x[/bold red]\x1b[31m<img src=x>"


def busy_room() -> Room:
    room = Room()
    room.says(CLIENT, GREETING)
    room.says(WORKER, register())
    room.says(CLIENT, submit(1, ModelSpec(tag=HOSTILE)), submit(2, ModelSpec(tag="other"), "xyz"))
    return room


def printed(status: Status) -> str:
    output = io.StringIO()
    Console(file=output, width=160).print(status_command.render(status))
    return output.getvalue()


def test_names_of_peers_are_text_and_no_markup() -> None:
    room = busy_room()
    text = printed(snapshot(room.broker, About("1.0", "ipc:///x", 7, 900.0), room.now))
    assert "[bold red]x[/bold red]?[31m<img src=x>" in text
    assert "\x1b" not in text
    assert "3 in 1" in text
    assert "1 waiting, 1 leased" in text


def test_a_broker_without_workers_says_how_to_start_one() -> None:
    assert "birdie-zmq worker" in printed(snapshot(Room().broker, About("1.0", "ipc:///x", 7, 900.0), 1_000.0))


def test_once_prints_what_the_page_has(capsys: pytest.CaptureFixture[str]) -> None:
    room = busy_room()
    with StatusServer(0, "tcp://127.0.0.1:5555") as server:
        server.look(room.broker, room.now)
        assert cli.main(["status", "--once", "--port", server.address]) == 0
    assert "tcp://127.0.0.1:5555" in capsys.readouterr().out


def test_a_page_that_does_not_answer_is_an_error_that_says_what_to_start(capsys: pytest.CaptureFixture[str]) -> None:
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
def test_a_port_or_a_url_names_the_page(port: str, url: str) -> None:
    assert status_command.url_of(port) == url


@pytest.mark.parametrize("port", ["70000", "file:///etc/passwd", "-1", ""])
def test_what_is_neither_is_refused(port: str) -> None:
    with pytest.raises(UsageError, match="neither a port nor a URL"):
        status_command.url_of(port)


def test_times_have_two_units() -> None:
    assert [status_command.duration(s) for s in (5.9, 65, 3_725, 90_000)] == [
        "5 s",
        "1 min 5 s",
        "1 h 2 min",
        "1 d 1 h",
    ]

"""The phases of a session with the broker; `test_core` tests its timeouts and warnings."""

from __future__ import annotations

from birdie_zmq._version import __version__
from birdie_zmq.client.actions import Send
from birdie_zmq.client.session import Closed, Open, Opening, Session
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import ClientSettings

OPEN_SESSION = Send(m.OpenSession(package_version=__version__))
PING = Send(m.Ping())


def new_session() -> Session:
    return Session(ClientSettings(connect_s=5), "tcp://127.0.0.1:5555")


def test_the_phases_of_a_session() -> None:
    session = new_session()
    phases: list[Closed | Opening | Open] = [session.phase]

    assert session.begin_call(now=1.0) == [OPEN_SESSION]
    phases.append(session.phase)
    assert session.opened(now=2.0) == [PING]
    phases.append(session.phase)
    assert session.open(now=3.0) == [OPEN_SESSION]
    phases.append(session.phase)
    session.opened(now=4.0)
    assert session.close() == [Send(m.CloseSession())]
    phases.append(session.phase)
    assert session.close() == []

    assert phases == [Closed(), Opening(1.0, 1.0), Open(2.0), Opening(3.0, 3.0), Closed()]


def test_a_late_session_opened_does_not_open_a_closed_session() -> None:
    session = new_session()
    session.begin_call(now=0.0)
    session.close()

    assert session.opened(now=1.0) == []
    assert session.phase == Closed()


def test_a_session_that_no_broker_opens_is_closed() -> None:
    session = new_session()
    session.begin_call(now=0.0)

    session.tick(now=6.0, stall_s=0.0)

    assert session.phase == Closed()


def test_the_number_of_workers_is_that_of_the_session() -> None:
    session = new_session()
    session.begin_call(now=0.0)
    session.opened(now=0.0)
    session.pong(m.Pong(workers=3), now=1.0)
    assert session.workers == 3

    session.open(now=2.0)
    session.opened(now=2.0)

    assert session.workers == 0

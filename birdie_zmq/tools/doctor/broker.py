"""Whether a broker answers, how many workers it has, and whether one of them has or can load a model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TypeVar

from birdie_zmq._version import __version__
from birdie_zmq.client.client import Client, Pulse
from birdie_zmq.errors import BirdieError, NotAllowed, ProtocolError, UsageError, VersionMismatch, WorkerUnavailable
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.endpoints import parse_endpoint
from birdie_zmq.protocol.security.keys import read_peer_key
from birdie_zmq.protocol.sockets import Dealer, wait
from birdie_zmq.settings import ClientSettings
from birdie_zmq.tools.doctor.finding import Finding
from birdie_zmq.types import ModelSpec

_decode = decoder(m.BrokerToClient | m.Refusal)
ANSWER_S = 5.0
_LOAD_S = 900.0
_POLL_S = 0.1
T = TypeVar("T", m.SessionOpened, m.Pong)


def check(endpoint: str, key_file: Path | None, tag: str | None, answer_s: float = ANSWER_S) -> list[Finding]:
    """Greet a broker as a client does; with a tag, have a worker load that model.

    Args:
        endpoint: Where the broker is.
        key_file: The client's key file, for a broker with keys.
        tag: The model that is meant, None for none.
        answer_s: Seconds that the broker may take to answer.
    """
    try:
        where = parse_endpoint(endpoint)
    except UsageError as error:
        return [Finding("broker", "wrong", error.message, "birdie-zmq doctor --endpoint tcp://HOST:PORT")]
    try:
        key = None if key_file is None else read_peer_key(key_file)
    except UsageError:
        return [Finding("broker", "warning", f"{where} was not asked, since the key file cannot be used")]
    with Dealer(where, key) as dealer:
        try:
            opened = _ask(dealer, m.OpenSession(package_version=__version__), m.SessionOpened, answer_s)
            pong = None if opened is None else _ask(dealer, m.Ping(), m.Pong, answer_s)
            if opened is not None:
                dealer.send(encode(m.CloseSession()))
        except BirdieError as error:
            return [_refused(endpoint, error)]
        doubt = dealer.doubt
    if opened is None or pong is None:
        return [_silent(endpoint, doubt, answer_s)]
    findings = [_answered(endpoint, opened), _workers(endpoint, pong.workers)]
    if tag is not None and pong.workers:
        findings.append(_model(endpoint, key_file, tag))
    return findings


def _ask(dealer: Dealer, message: m.ClientMessage, expected: type[T], seconds: float) -> T | None:
    """The answer to a message, None if none came in time."""
    dealer.send(encode(message))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        wait(dealer, _POLL_S)
        while (frame := dealer.receive()) is not None:
            answer = _decode(frame)
            if isinstance(answer, m.Refusal):
                raise answer.error.to_error()
            if isinstance(answer, expected):
                return answer
    return None


def _silent(endpoint: str, doubt: str | None, answer_s: float) -> Finding:
    text = f"no broker answers at {endpoint} within {answer_s:.0f} s"
    if doubt is not None:
        return Finding("broker", "wrong", f"{text}; {doubt}", "birdie-zmq doctor … --key-file FILE   of this broker")
    return Finding("broker", "wrong", text, f"birdie-zmq broker --bind {endpoint}   on the broker's machine")


def _refused(endpoint: str, error: BirdieError) -> Finding:
    if isinstance(error, VersionMismatch):
        text = f"the broker at {endpoint} is another version: {error.message}"
        return Finding("broker", "wrong", text, f"pip install 'birdie-zmq=={__version__}'   on the broker's machine")
    if isinstance(error, NotAllowed):
        return Finding("broker", "wrong", error.message, "birdie-zmq keys new client NAME   on the broker's machine")
    if isinstance(error, ProtocolError):
        text = f"what answers at {endpoint} is no broker of birdie-zmq: {error.message}"
        return Finding("broker", "wrong", text, "give the broker's own --port or --endpoint")
    return Finding("broker", "wrong", f"the broker at {endpoint} refuses: {error.message}", "read what it says")


def _answered(endpoint: str, opened: m.SessionOpened) -> Finding:
    if opened.package_version != __version__:
        text = f"the broker at {endpoint} is birdie-zmq {opened.package_version}, and this is {__version__}"
        return Finding("broker", "warning", text, f"pip install 'birdie-zmq=={__version__}'   on the broker's machine")
    return Finding("broker", "ok", f"{endpoint} answers, birdie-zmq {opened.package_version}")


def _workers(endpoint: str, count: int) -> Finding:
    if not count:
        text = "the broker has no worker, so a run waits and then fails"
        return Finding("workers", "wrong", text, f"birdie-zmq worker --connect {endpoint}")
    return Finding("workers", "ok", f"{count} at the broker")


class _Deadline:
    """Ends waiting for a model that does not come."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._seconds = seconds

    def check(self, pulse: Pulse) -> None:
        """Raise once the time is over."""
        del pulse
        if time.monotonic() > self._end:
            raise WorkerUnavailable(f"no worker has loaded it within {self._seconds:.0f} s; all may be busy")


def _model(endpoint: str, key_file: Path | None, tag: str) -> Finding:
    settings = ClientSettings(connect_s=ANSWER_S, broker_timeout_s=ANSWER_S * 2, worker_wait_s=ANSWER_S * 2)
    deadline = _Deadline(_LOAD_S)
    try:
        with Client(endpoint, ModelSpec(tag=tag), None, settings, deadline, key_file=key_file) as client:
            found = client.describe()
    except BirdieError as error:
        cure = "mend the worker's page, or give a --model-tag that it knows"
        return Finding("model", "wrong", f"{tag}: {error.message}", cure, error.remote_traceback or "")
    text = f"a worker has {tag}: {found.engine}, {found.dtype}, on {', '.join(found.devices)}, by {found.api}"
    return Finding("model", "ok", text)

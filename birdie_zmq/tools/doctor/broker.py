"""Checks whether a broker answers, how many workers it has, and whether a worker can load a model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TypeVar

from birdie_zmq._version import __version__
from birdie_zmq.client.client import Client, Liveness
from birdie_zmq.errors import BirdieError, NotAllowed, ProtocolError, UsageError, VersionMismatch, WorkerUnavailable
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.dealer import Dealer
from birdie_zmq.protocol.endpoints import parse_endpoint
from birdie_zmq.protocol.security.keys import read_peer_key
from birdie_zmq.protocol.transport import wait
from birdie_zmq.settings import ClientSettings
from birdie_zmq.tools.doctor.finding import Finding
from birdie_zmq.types import ModelSpec

_decode = decoder(m.BrokerToClient | m.Refusal)
ANSWER_TIMEOUT_S = 5.0
_LOAD_TIMEOUT_S = 900.0
_POLL_S = 0.1
T = TypeVar("T", m.SessionOpened, m.Pong)


def check(
    endpoint: str,
    key_file: Path | None,
    tag: str | None,
    answer_s: float = ANSWER_TIMEOUT_S,
    allow_group: bool = False,
) -> list[Finding]:
    """Open a session with a broker, as a client does; with a model tag, let a worker load the model.

    Args:
        endpoint: The endpoint of the broker.
        key_file: The client's private key file, for a broker with keys.
        tag: The model tag, None to load no model.
        answer_s: Timeout for an answer of the broker, in seconds.
        allow_group: Whether the group of the key file may read it.
    """
    try:
        parsed = parse_endpoint(endpoint)
    except UsageError as error:
        return [Finding("broker", "wrong", error.message, "birdie-zmq doctor --endpoint tcp://HOST:PORT")]
    try:
        key = None if key_file is None else read_peer_key(key_file, allow_group)
    except UsageError:
        return [Finding("broker", "warning", f"{parsed} was not checked, since the key file is invalid")]
    with Dealer(parsed, key) as dealer:
        try:
            opened = _request(dealer, m.OpenSession(package_version=__version__), m.SessionOpened, answer_s)
            pong = None if opened is None else _request(dealer, m.Ping(), m.Pong, answer_s)
            if opened is not None:
                dealer.send(encode(m.CloseSession()))
        except BirdieError as error:
            return [_refused(endpoint, error)]
        handshake_hint, hint = dealer.handshake_hint, dealer.hint
    if opened is None or pong is None:
        return [_unavailable(endpoint, handshake_hint, hint, answer_s)]
    findings = [_version(endpoint, opened), _workers(endpoint, pong.workers)]
    if tag is not None and pong.workers:
        findings.append(_load(endpoint, key_file, allow_group, tag))
    return findings


def _request(dealer: Dealer, message: m.ClientMessage, expected: type[T], seconds: float) -> T | None:
    """Send a message and return its answer, None without an answer in time."""
    dealer.send(encode(message))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        wait(dealer, _POLL_S)
        while (frame := dealer.receive()) is not None:
            answer = _decode(frame)
            if isinstance(answer, m.Refusal):
                raise answer.error.to_error()
            if isinstance(answer, expected):
                return answer
    return None


def _unavailable(endpoint: str, handshake_hint: str | None, hint: str | None, answer_s: float) -> Finding:
    text = f"no broker answers at {endpoint} within {answer_s:.0f} s"
    if handshake_hint is not None:
        return Finding(
            "broker", "wrong", f"{text}; {handshake_hint}", "birdie-zmq doctor … --key-file FILE   of this broker"
        )
    if hint is not None:
        text = f"{text}; {hint}"
    return Finding("broker", "wrong", text, f"birdie-zmq broker --bind {endpoint}   on the broker's machine")


def _refused(endpoint: str, error: BirdieError) -> Finding:
    if isinstance(error, VersionMismatch):
        text = f"the broker at {endpoint} has another version: {error.message}"
        return Finding("broker", "wrong", text, f"pip install 'birdie-zmq=={__version__}'   on the broker's machine")
    if isinstance(error, NotAllowed):
        return Finding("broker", "wrong", error.message, "birdie-zmq keys new client NAME   on the broker's machine")
    if isinstance(error, ProtocolError):
        text = f"the peer at {endpoint} is not a birdie-zmq broker: {error.message}"
        return Finding("broker", "wrong", text, "pass the --port or --endpoint of the broker")
    return Finding(
        "broker", "wrong", f"the broker at {endpoint} rejects the session: {error.message}", "follow the message"
    )


def _version(endpoint: str, opened: m.SessionOpened) -> Finding:
    if opened.package_version != __version__:
        text = f"the broker at {endpoint} runs birdie-zmq {opened.package_version}, and this client {__version__}"
        return Finding("broker", "warning", text, f"pip install 'birdie-zmq=={__version__}'   on the broker's machine")
    return Finding("broker", "ok", f"{endpoint} answers, birdie-zmq {opened.package_version}")


def _workers(endpoint: str, count: int) -> Finding:
    if not count:
        text = "the broker has no worker, so a run waits and then fails"
        return Finding("workers", "wrong", text, f"birdie-zmq worker --connect {endpoint}")
    return Finding("workers", "ok", f"{count} connected to the broker")


class _Deadline:
    """A limit on the time to load a model."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._seconds = seconds

    def check(self, liveness: Liveness) -> None:
        """Raise `WorkerUnavailable` after the deadline."""
        del liveness
        if time.monotonic() > self._deadline:
            raise WorkerUnavailable(
                f"no worker has loaded the model within {self._seconds:.0f} s; all workers may be busy"
            )


def _load(endpoint: str, key_file: Path | None, allow_group: bool, tag: str) -> Finding:
    settings = ClientSettings(
        connect_s=ANSWER_TIMEOUT_S, broker_timeout_s=ANSWER_TIMEOUT_S * 2, worker_wait_s=ANSWER_TIMEOUT_S * 2
    )
    deadline = _Deadline(_LOAD_TIMEOUT_S)
    try:
        with Client(endpoint, ModelSpec(tag=tag), None, settings, deadline, key_file, allow_group) as client:
            description = client.describe()
    except BirdieError as error:
        fix = "fix the worker's api.py, or pass a --model-tag that it knows"
        return Finding("model", "wrong", f"{tag}: {error.message}", fix, error.remote_traceback or "")
    text = f"a worker has loaded {tag}: {description.engine}, {description.dtype}, on {', '.join(description.devices)}, from {description.api}"
    return Finding("model", "ok", text)

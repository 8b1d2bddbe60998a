"""Keys over real sockets: which peers are allowed, what refused peers receive, and what the broker logs about them."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import zmq

from birdie_zmq._version import __version__
from birdie_zmq.broker.server import serve
from birdie_zmq.client import Client
from birdie_zmq.client.job import Job
from birdie_zmq.errors import BirdieError, BrokerUnavailable, NotAllowed, UsageError
from birdie_zmq.processes.signals import StopSignals
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol import transport
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.dealer import Dealer
from birdie_zmq.protocol.endpoints import parse_endpoint
from birdie_zmq.protocol.packing import pack_answers, pack_work, unpack_answers, unpack_work
from birdie_zmq.protocol.router import ReceivedFrame, Router
from birdie_zmq.protocol.security import authentication
from birdie_zmq.protocol.security.allow_list import AllowList
from birdie_zmq.protocol.security.keys import KeyPair, PeerKey, new_key, read_peer_key, revoke_key
from birdie_zmq.protocol.security.principals import Principal, Role
from birdie_zmq.protocol.transport import wait
from birdie_zmq.settings import AgentSettings, BrokerSettings, ClientSettings
from birdie_zmq.types import ModelSpec, RollingWork
from birdie_zmq.worker import agent
from birdie_zmq.worker.agent import Agent

DEADLINE_S = 20.0
ANY_PORT = "tcp://127.0.0.1:*"
SHORT_TICK = BrokerSettings(tick_s=0.05)
SHORT_TIMEOUTS = ClientSettings(connect_s=1.0, open_retry_s=0.2)

decode = decoder(m.BrokerToClient | m.BrokerToWorker | m.Refusal)


def wait_until(condition: Callable[[], object]) -> None:
    """Poll until a condition that other threads change is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def unknown_key_pair() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


class KeyFolder:
    """A broker's key folder, and the private keys of its principals."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.alice = self.key("client", "alice")
        self.bob = self.key("client", "bob")
        self.gpu = self.key("worker", "gpu1")

    def key(self, role: Role, name: str) -> PeerKey:
        return read_peer_key(new_key(self.path, role, name))


@pytest.fixture(autouse=True)
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the wait for unsent messages of a refused peer."""
    monkeypatch.setattr(transport, "LINGER_MS", 100)


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    return KeyFolder(tmp_path / "keys")


class RunningBroker:
    """A broker in a thread, and its peers."""

    def __init__(self, keys: Path | None, bind: str = ANY_PORT) -> None:
        self.router = Router(parse_endpoint(bind), None if keys is None else AllowList(keys))
        self.endpoint = self.router.endpoint
        self._ends, self._stops = os.pipe()
        stop = cast(StopSignals, SimpleNamespace(descriptor=self._ends))
        self._thread = threading.Thread(target=serve, args=(self.router, SHORT_TICK, stop))
        self._thread.start()
        self._dealers: list[Dealer] = []

    def dealer(self, key: PeerKey | None) -> Dealer:
        dealer = Dealer(parse_endpoint(self.endpoint), key)
        self._dealers.append(dealer)
        return dealer

    def close(self) -> None:
        for dealer in self._dealers:
            dealer.close()
        os.write(self._stops, b"!")
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        self.router.close()
        os.close(self._ends)
        os.close(self._stops)


@pytest.fixture
def running_broker(folder: KeyFolder, caplog: pytest.LogCaptureFixture) -> Iterator[RunningBroker]:
    caplog.set_level(logging.INFO)
    running_broker = RunningBroker(folder.path)
    yield running_broker
    running_broker.close()


@pytest.fixture
def running_broker_without_keys() -> Iterator[RunningBroker]:
    running_broker = RunningBroker(None)
    yield running_broker
    running_broker.close()


def exchange(dealer: Dealer, *messages: m.Message, timeout_s: float = DEADLINE_S) -> Any:
    """Send messages and return the next received one, None after the timeout; raises what the dealer raises."""
    for message in messages:
        dealer.send(encode(message))
    deadline = time.monotonic() + timeout_s
    while (frame := dealer.receive()) is None:
        if time.monotonic() > deadline:
            return None
        wait(dealer, 0.05)
    return decode(frame)


def refusal_text(dealer: Dealer, *messages: m.Message) -> str:
    """Return the text of the broker's refusal, which must be a NotAllowed error."""
    received = exchange(dealer, *messages)
    assert isinstance(received, m.Refusal)
    assert type(received.error.to_error()) is NotAllowed
    return received.error.message


OPEN_SESSION = m.OpenSession(package_version=__version__)
REGISTRATION = m.RegisterWorker(package_version=__version__, engine="jax", host="here", process_id=7, capacity=1)


def submit(text: str) -> m.Submit:
    return m.Submit(batch=1, model=ModelSpec(tag="A"), work=pack_work(RollingWork(texts=[text])))


# --- Allowed peers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bind", [ANY_PORT, "ipc"])
def test_clients_and_workers_with_keys_are_served(folder: KeyFolder, bind: str, tmp_path: Path) -> None:
    running_broker = RunningBroker(folder.path, f"ipc://{tmp_path / 'broker'}" if bind == "ipc" else bind)
    try:
        worker, client = running_broker.dealer(folder.gpu), running_broker.dealer(folder.alice)
        assert isinstance(exchange(worker, REGISTRATION), m.WorkerRegistered)
        assert isinstance(exchange(client, OPEN_SESSION), m.SessionOpened)
        client.send(encode(submit("x")))
        lease = exchange(worker)
        assert isinstance(lease, m.Lease)
        answers = pack_answers("rolling", [-1.5])
        worker.send(encode(m.LeaseAnswered(lease=lease.lease, indices=[0], answers=answers)))
        answered = exchange(client)
        assert isinstance(answered, m.Answered)
        assert unpack_answers("rolling", answered.answers) == [-1.5]
    finally:
        running_broker.close()


def receive_frame(router: Router) -> ReceivedFrame:
    deadline = time.monotonic() + DEADLINE_S
    while (received := router.receive()) is None:
        assert time.monotonic() < deadline, "nothing came"
        wait(router, 0.05)
    return received


def test_a_router_knows_the_key_of_each_frame(folder: KeyFolder) -> None:
    allowed = AllowList(folder.path)
    with Router(parse_endpoint(ANY_PORT), allowed) as router:
        for key in (folder.alice, folder.gpu):
            with Dealer(parse_endpoint(router.endpoint), key) as dealer:
                dealer.send(b"hello")
                assert allowed.principal(receive_frame(router).key) == key.principal


def test_a_router_without_keys_has_no_key_for_a_frame() -> None:
    with Router(parse_endpoint(ANY_PORT)) as router, Dealer(parse_endpoint(router.endpoint)) as dealer:
        dealer.send(b"hello")
        assert receive_frame(router).key is None


def test_all_addresses_may_be_bound_with_keys(folder: KeyFolder) -> None:
    running_broker = RunningBroker(folder.path, "tcp://0.0.0.0:*")
    try:
        port = running_broker.endpoint.rpartition(":")[2]
        running_broker.endpoint = f"tcp://127.0.0.1:{port}"
        assert isinstance(exchange(running_broker.dealer(folder.alice), OPEN_SESSION), m.SessionOpened)
    finally:
        running_broker.close()
    with pytest.raises(UsageError, match="--keys"):
        Router(parse_endpoint("tcp://0.0.0.0:*"))


# --- Refused peers ---------------------------------------------------------------------------------------------------


def test_an_unknown_key_is_refused_at_once(
    running_broker: RunningBroker, folder: KeyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = unknown_key_pair()
    with pytest.raises(NotAllowed, match="refuses the key of client 'alice'") as error:
        exchange(running_broker.dealer(replace(folder.alice, pair=unknown)), OPEN_SESSION)
    assert str(folder.alice.path) in error.value.message
    wait_until(lambda: "refused connections" in caplog.text)
    assert (
        f"refused connections: 1 with a key that is not allowed; the last key was {unknown.public} from 127.0.0.1"
        in (caplog.text)
    )


def test_a_public_key_without_its_secret_is_refused(running_broker: RunningBroker, folder: KeyFolder) -> None:
    forged = KeyPair(folder.alice.pair.public, unknown_key_pair().secret)
    assert exchange(running_broker.dealer(replace(folder.alice, pair=forged)), OPEN_SESSION, timeout_s=0.5) is None


def test_a_peer_without_a_key_learns_that_one_is_required(
    running_broker: RunningBroker, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NotAllowed, match="requires a key") as error:
        exchange(running_broker.dealer(None), OPEN_SESSION)
    for message in ("key_file=", "--key-file", "birdie-zmq keys new client NAME"):
        assert message in error.value.message
    wait_until(lambda: "refused connections" in caplog.text)


def test_a_key_is_refused_for_a_broker_without_keys(
    running_broker_without_keys: RunningBroker, folder: KeyFolder
) -> None:
    with pytest.raises(NotAllowed, match="has no keys"):
        exchange(running_broker_without_keys.dealer(folder.alice), OPEN_SESSION)


def test_a_client_sends_nothing_to_a_broker_with_another_key(tmp_path: Path, folder: KeyFolder) -> None:
    """Such a broker may be a man in the middle: it allows every peer, and has its own key."""
    other = KeyFolder(tmp_path / "other")
    new_key(other.path, "client", "carol", carol := tmp_path / "carol")
    allowed = AllowList(other.path)
    allowed.allows = allowed.principal = lambda key: folder.alice.principal  # type: ignore[method-assign,assignment]
    with Router(parse_endpoint(ANY_PORT), allowed) as router:
        with Dealer(parse_endpoint(router.endpoint), folder.alice) as dealer:
            dealer.send(b"a prompt")
            deadline = time.monotonic() + 1.0
            while time.monotonic() < deadline:
                wait(router, 0.02)
                wait(dealer, 0)
                assert router.receive() is None
                assert dealer.receive() is None
            assert dealer.handshake_hint is not None
            assert f"another key than the one in {folder.alice.path}" in dealer.handshake_hint
            assert "a key file for a broker with another key" in str(router.refused_connections())
        with Dealer(parse_endpoint(router.endpoint), read_peer_key(carol)) as dealer:
            dealer.send(b"a prompt")
            assert receive_frame(router).frame == b"a prompt"


def test_a_scanner_cannot_fill_the_log(
    running_broker: RunningBroker, folder: KeyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    for _ in range(50):
        with (
            pytest.raises(NotAllowed),
            Dealer(parse_endpoint(running_broker.endpoint), replace(folder.alice, pair=unknown_key_pair())) as d,
        ):
            exchange(d, OPEN_SESSION)
    took_s = time.monotonic() - began
    time.sleep(2.5)
    lines = [record.getMessage() for record in caplog.records if "refused connections" in record.getMessage()]
    assert 1 <= len(lines) <= took_s + 3
    counts = [re.fullmatch(r"refused connections: (\d+) with a key that is not .*", line) for line in lines]
    assert sum(int(count[1]) for count in counts if count is not None) == 50


def test_a_broker_whose_authenticator_has_ended_raises(folder: KeyFolder) -> None:
    with Router(parse_endpoint(ANY_PORT), AllowList(folder.path)) as router:
        assert router._authentication is not None
        router._authentication._authenticator.stop()
        with Dealer(parse_endpoint(router.endpoint), folder.alice) as dealer:
            dealer.send(b"a prompt")
            wait(router, 0.3)
            assert router.receive() is None
        with pytest.raises(BirdieError, match="start the broker again"):
            router.refused_connections()


def test_a_failed_key_lookup_refuses_only_that_connection(
    running_broker: RunningBroker, folder: KeyFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(running_broker.router.keys, "allows", lambda key: 1 / 0)
        with pytest.raises(NotAllowed):
            exchange(running_broker.dealer(folder.alice), OPEN_SESSION)
    assert isinstance(exchange(running_broker.dealer(folder.alice), OPEN_SESSION), m.SessionOpened)
    wait_until(lambda: "1 with a key that could not be looked up (ZeroDivisionError" in caplog.text)


def test_a_connection_without_a_handshake_is_closed(folder: KeyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "HANDSHAKE_MS", 200)
    with (
        Router(parse_endpoint(ANY_PORT), AllowList(folder.path)) as router,
        socket.create_connection(("127.0.0.1", int(router.endpoint.rpartition(":")[2]))) as silent,
    ):
        silent.settimeout(DEADLINE_S)
        while silent.recv(1_000):
            pass


ZMTP_2_GREETING = b"\xff" + bytes(8) + b"\x7f\x01\x05" + bytes(2)
"""The greeting of ZMTP 2.0, which has no CURVE: a DEALER without a routing id."""


def test_zmtp_2_does_not_bypass_the_keys(folder: KeyFolder) -> None:
    with Router(parse_endpoint(ANY_PORT), AllowList(folder.path)) as router:
        with socket.create_connection(("127.0.0.1", int(router.endpoint.rpartition(":")[2]))) as old:
            old.settimeout(DEADLINE_S)
            old.sendall(ZMTP_2_GREETING + b"\x00\x05hello")
            with contextlib.suppress(ConnectionError):
                while old.recv(1_000):
                    pass
        wait(router, 0.2)
        assert router.receive() is None
    with (
        Router(parse_endpoint(ANY_PORT)) as router,
        socket.create_connection(("127.0.0.1", int(router.endpoint.rpartition(":")[2]))) as old,
    ):
        old.sendall(ZMTP_2_GREETING + b"\x00\x05hello")
        assert receive_frame(router).frame == b"hello"


@pytest.mark.parametrize("has_key", [True, False])
def test_a_client_with_a_key_does_not_use_zmtp_2(folder: KeyFolder, has_key: bool) -> None:
    received = b""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Dealer(
            parse_endpoint(f"tcp://127.0.0.1:{listener.getsockname()[1]}"), folder.alice if has_key else None
        ) as dealer,
    ):
        dealer.send(b"a prompt")
        connection, _ = listener.accept()
        connection.settimeout(0.5)
        with connection, contextlib.suppress(ConnectionError, TimeoutError):
            connection.sendall(ZMTP_2_GREETING.replace(b"\x05", b"\x06"))
            while chunk := connection.recv(1_000):
                received += chunk
    assert (b"a prompt" in received) == (not has_key)


# --- Roles -----------------------------------------------------------------------------------------------------------


def test_a_client_key_cannot_register_a_worker(
    running_broker: RunningBroker, folder: KeyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    client_as_worker, client = running_broker.dealer(folder.alice), running_broker.dealer(folder.bob)
    assert "the key of client 'alice' may not send RegisterWorker" in refusal_text(client_as_worker, REGISTRATION)
    exchange(client, OPEN_SESSION)
    assert exchange(client, submit("secret"), m.Ping()) == m.Pong(workers=0)
    assert exchange(client_as_worker, timeout_s=0.2) is None
    assert "refused a message: the key of client 'alice' may not send RegisterWorker" in caplog.text


def test_a_worker_key_cannot_open_a_session(running_broker: RunningBroker, folder: KeyFolder) -> None:
    assert "the key of worker 'gpu1' may not send OpenSession" in refusal_text(
        running_broker.dealer(folder.gpu), OPEN_SESSION
    )


def test_editing_the_role_in_a_private_file_has_no_effect(running_broker: RunningBroker, folder: KeyFolder) -> None:
    folder.alice.path.write_text(folder.alice.path.read_text().replace("role: client", "role: worker"))
    forged = read_peer_key(folder.alice.path)
    assert forged.principal.role == "worker"
    assert "client 'alice'" in refusal_text(running_broker.dealer(forged), REGISTRATION)


# --- Keys added and revoked ------------------------------------------------------------------------------------------


def test_a_revoked_client_is_refused_during_its_session(
    running_broker: RunningBroker, folder: KeyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    client, worker = running_broker.dealer(folder.alice), running_broker.dealer(folder.gpu)
    exchange(worker, REGISTRATION)
    exchange(client, OPEN_SESSION)
    client.send(encode(submit("x")))
    lease = exchange(worker)
    revoke_key(folder.path, "client", "alice")
    assert exchange(worker) == m.CancelLease(lease=lease.lease)
    assert refusal_text(client, m.Ping()) == "the key of client 'alice' has been revoked"
    assert "the key of client 'alice' is no longer allowed" in caplog.text
    assert "refused a message: the key of client 'alice' has been revoked" in caplog.text
    client.reconnect()
    with pytest.raises(NotAllowed, match="refuses the key"):
        exchange(client, OPEN_SESSION)


def test_a_revoked_worker_gets_no_more_work(running_broker: RunningBroker, folder: KeyFolder) -> None:
    client, worker = running_broker.dealer(folder.alice), running_broker.dealer(folder.gpu)
    exchange(worker, REGISTRATION)
    exchange(client, OPEN_SESSION)
    revoke_key(folder.path, "worker", "gpu1")
    wait_until(lambda: exchange(client, m.Ping()) == m.Pong(workers=0))
    client.send(encode(submit("secret")))
    assert exchange(worker, timeout_s=0.2) is None
    assert "revoked" in refusal_text(worker, m.Heartbeat(phase="idle"))


def test_a_key_made_while_the_broker_runs_is_allowed(running_broker: RunningBroker, folder: KeyFolder) -> None:
    assert isinstance(exchange(running_broker.dealer(folder.key("client", "carol")), OPEN_SESSION), m.SessionOpened)


# --- Identities ------------------------------------------------------------------------------------------------------


@pytest.fixture
def forge(folder: KeyFolder, running_broker: RunningBroker) -> Iterator[Callable[[bytes], zmq.Socket[bytes]]]:
    """Connect as Bob with a forged routing id."""
    with zmq.Context() as context:
        made: list[zmq.Socket[bytes]] = []

        def forge(routing_id: bytes) -> zmq.Socket[bytes]:
            forger: zmq.Socket[bytes] = context.socket(zmq.DEALER)
            forger.linger = 0
            forger.routing_id = routing_id
            forger.curve_publickey = folder.bob.pair.public.encode()
            forger.curve_secretkey = folder.bob.pair.secret.encode()
            forger.curve_serverkey = folder.bob.broker.encode()
            forger.connect(running_broker.endpoint)
            made.append(forger)
            return forger

        yield forge
        for forger in made:
            forger.close()


def record_routing_ids(router: Router, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Record the routing ids of all messages that a router receives."""
    seen: list[bytes] = []
    receive = router.receive

    def recording_receive() -> Any:
        if (received := receive()) is not None:
            seen.append(received.peer)
        return received

    monkeypatch.setattr(router, "receive", recording_receive)
    return seen


def test_forging_a_routing_id_in_use_has_no_effect(
    running_broker: RunningBroker, folder: KeyFolder, forge: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = record_routing_ids(running_broker.router, monkeypatch)
    client, worker = running_broker.dealer(folder.alice), running_broker.dealer(folder.gpu)
    exchange(client, OPEN_SESSION)
    forged = forge(seen[0])
    for message in (m.CloseSession(), OPEN_SESSION, submit("forged")):
        forged.send(encode(message))
    assert not forged.poll(500)
    exchange(worker, REGISTRATION)
    client.send(encode(submit("x")))
    lease = exchange(worker)
    assert unpack_work(lease.work) == RollingWork(texts=["x"])
    answers = pack_answers("rolling", [-1.5])
    worker.send(encode(m.LeaseAnswered(lease=lease.lease, indices=[0], answers=answers)))
    assert unpack_answers("rolling", exchange(client).answers) == [-1.5]
    assert not forged.poll(100)


def test_forging_a_former_routing_id_gives_no_session(
    running_broker: RunningBroker, folder: KeyFolder, forge: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = record_routing_ids(running_broker.router, monkeypatch)
    client = running_broker.dealer(folder.alice)
    exchange(client, OPEN_SESSION)
    client.reconnect()

    def attempt() -> bool:
        # The attempt has no effect until the ROUTER has noticed that the owner has left.
        forged = forge(seen[0])
        forged.send(encode(m.Ping()))
        if not forged.poll(200):
            return False
        refusal = decode(forged.recv())
        assert isinstance(refusal, m.Refusal)
        assert type(refusal.error.to_error()) is NotAllowed
        return refusal.error.message == "client 'bob' sent a message on the connection of client 'alice'"

    wait_until(attempt)


def test_a_self_chosen_routing_id_is_refused(running_broker: RunningBroker, forge: Callable[[bytes], Any]) -> None:
    chosen = forge(b"alice")
    chosen.send(encode(OPEN_SESSION))
    refusal = decode(chosen.recv())
    assert isinstance(refusal, m.Refusal)
    assert "client 'bob' may not choose the routing id" in refusal.error.message


# --- Messages to the user --------------------------------------------------------------------------------------------


def send_request(endpoint: str, key_file: Path | None) -> None:
    with Client(endpoint, ModelSpec(tag="A"), settings=SHORT_TIMEOUTS, key_file=key_file) as client:
        client.run([Job(RollingWork(texts=["x"]), [0])], 1)


def test_a_refused_client_fails_at_once_with_the_reason(running_broker: RunningBroker, folder: KeyFolder) -> None:
    began = time.monotonic()
    with pytest.raises(NotAllowed, match="may not send OpenSession"):
        send_request(running_broker.endpoint, folder.gpu.path)
    assert time.monotonic() - began < SHORT_TIMEOUTS.connect_s


def test_a_refused_client_may_retry(running_broker: RunningBroker, folder: KeyFolder, tmp_path: Path) -> None:
    new_key(folder.path, "client", "dave", dave := tmp_path / "dave")
    public = folder.path / "clients" / "dave"
    public.rename(tmp_path / "aside")
    settings = ClientSettings(connect_s=5.0, worker_wait_s=0.1, ping_s=0.05)
    with Client(running_broker.endpoint, ModelSpec(tag="A"), settings=settings, key_file=dave) as client:
        with pytest.raises(NotAllowed, match="refuses the key"):
            client.describe()
        (tmp_path / "aside").rename(public)
        with pytest.raises(BirdieError, match="no worker"):
            client.describe()


def test_the_timeout_names_the_key_if_it_may_be_the_cause(folder: KeyFolder, tmp_path: Path) -> None:
    other = KeyFolder(tmp_path / "other")
    running_broker = RunningBroker(other.path)
    try:
        with pytest.raises(BrokerUnavailable, match="within 1 s") as error:
            send_request(running_broker.endpoint, folder.alice.path)
        assert f"another key than the one in {folder.alice.path}" in error.value.message
    finally:
        running_broker.close()
    with pytest.raises(BrokerUnavailable) as error:
        send_request(running_broker.endpoint, folder.alice.path)
    assert "key" not in error.value.message.replace(str(folder.alice.path), "")


@pytest.mark.parametrize("key_kind", ["client-key", "no-key", "unknown-key"])
def test_a_refused_worker_ends_with_the_reason(running_broker: RunningBroker, folder: KeyFolder, key_kind: str) -> None:
    key, message = {
        "client-key": (folder.alice, "may not send RegisterWorker"),
        "no-key": (None, "requires a key"),
        "unknown-key": (replace(folder.gpu, pair=unknown_key_pair()), "refuses the key of worker 'gpu1'"),
    }[key_kind]
    with (
        StopSignals() as stop,
        Agent(running_broker.dealer(key), AgentSettings(), m.WorkerConfig(engine="jax"), {}) as loop,
        pytest.raises(NotAllowed, match=message),
    ):
        loop.run(stop)


def test_a_worker_logs_that_the_broker_has_another_key(
    running_broker: RunningBroker, folder: KeyFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agent, "_REGISTER_S", 0.3)
    ends, stops = os.pipe()
    stop = cast(StopSignals, SimpleNamespace(descriptor=ends))
    timer = threading.Timer(1.5, os.write, (stops, b"!"))
    timer.start()
    dealer = running_broker.dealer(replace(folder.gpu, broker=unknown_key_pair().public))
    settings = AgentSettings(heartbeat_s=0.1)
    with Agent(dealer, settings, m.WorkerConfig(engine="jax"), {}) as loop:
        loop.run(stop)
    timer.join()
    os.close(ends)
    os.close(stops)
    assert f"another key than the one in {folder.gpu.path}" in caplog.text


def test_a_broker_that_cannot_bind_leaves_no_authenticator(running_broker: RunningBroker, folder: KeyFolder) -> None:
    before = threading.active_count()
    with pytest.raises(UsageError, match="in use"):
        Router(parse_endpoint(running_broker.endpoint), AllowList(folder.path))
    assert threading.active_count() == before


def test_principals_with_the_same_name_differ() -> None:
    assert Principal("client", "alice", "a") != Principal("worker", "alice", "a")

"""Keys over real sockets: who gets in, what those hear who do not, and what the broker's log says of them."""

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

import numpy as np
import pytest
import zmq

from birdie_zmq._version import __version__
from birdie_zmq.broker.server import serve
from birdie_zmq.client import Client
from birdie_zmq.client.core import Job
from birdie_zmq.errors import BirdieError, BrokerUnavailable, NotAllowed, UsageError
from birdie_zmq.processes.signals import StopSignals
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol import sockets
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.endpoints import parse_endpoint
from birdie_zmq.protocol.security import authentication
from birdie_zmq.protocol.security.allow_list import AllowList
from birdie_zmq.protocol.security.keys import KeyPair, PeerKey, new_key, read_peer_key, revoke_key
from birdie_zmq.protocol.security.principals import Principal, Role
from birdie_zmq.protocol.sockets import Arrival, Dealer, Router, wait
from birdie_zmq.settings import AgentSettings, BrokerSettings, ClientSettings
from birdie_zmq.types import ModelSpec, RollingWork, Texts
from birdie_zmq.worker import agent
from birdie_zmq.worker.agent import Agent

DEADLINE_S = 20.0
ANY_PORT = "tcp://127.0.0.1:*"
QUICK = BrokerSettings(tick_s=0.05)
IMPATIENT = ClientSettings(connect_s=1.0, greet_s=0.2)

decode = decoder(m.BrokerToClient | m.BrokerToWorker | m.Refusal)


def until(condition: Callable[[], object]) -> None:
    """Poll until something that other threads bring about is so."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def stranger() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


class Folder:
    """A broker's folder of keys, and those that were handed out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.alice = self.key("client", "alice")
        self.bob = self.key("client", "bob")
        self.gpu = self.key("worker", "gpu1")

    def key(self, role: Role, name: str) -> PeerKey:
        return read_peer_key(new_key(self.path, role, name))


@pytest.fixture(autouse=True)
def quick_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a peer that is not let in wanted to say last is not waited for long."""
    monkeypatch.setattr(sockets, "LINGER_MS", 100)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "keys")


class Serving:
    """A broker's loop in a thread, and peers of it."""

    def __init__(self, keys: Path | None, bind: str = ANY_PORT) -> None:
        self.router = Router(parse_endpoint(bind), None if keys is None else AllowList(keys))
        self.endpoint = self.router.endpoint
        self._ends, self._stops = os.pipe()
        stop = cast(StopSignals, SimpleNamespace(descriptor=self._ends))
        self._thread = threading.Thread(target=serve, args=(self.router, QUICK, stop))
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
def serving(folder: Folder, caplog: pytest.LogCaptureFixture) -> Iterator[Serving]:
    caplog.set_level(logging.INFO)
    serving = Serving(folder.path)
    yield serving
    serving.close()


@pytest.fixture
def serving_without_keys() -> Iterator[Serving]:
    serving = Serving(None)
    yield serving
    serving.close()


def hears(dealer: Dealer, *messages: m.Message, patience_s: float = DEADLINE_S) -> Any:
    """Send messages, and the next one that comes, None if none does in time; raises what the dealer raises."""
    for message in messages:
        dealer.send(encode(message))
    deadline = time.monotonic() + patience_s
    while (frame := dealer.receive()) is None:
        if time.monotonic() > deadline:
            return None
        wait(dealer, 0.05)
    return decode(frame)


def refused(dealer: Dealer, *messages: m.Message) -> str:
    """What the broker's refusal says, which must be for want of a right."""
    heard = hears(dealer, *messages)
    assert isinstance(heard, m.Refusal)
    assert type(heard.error.to_error()) is NotAllowed
    return heard.error.message


GREETING = m.OpenSession(package_version=__version__)
REGISTRATION = m.RegisterWorker(package_version=__version__, engine="jax", host="here", process_id=7, capacity=1)


def submit(text: str) -> m.Submit:
    return m.Submit(batch=1, model=ModelSpec(tag="A"), work=RollingWork(texts=[text]))


# --- Who gets in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bind", [ANY_PORT, "ipc"])
def test_clients_and_workers_with_keys_are_served(folder: Folder, bind: str, tmp_path: Path) -> None:
    serving = Serving(folder.path, f"ipc://{tmp_path / 'broker'}" if bind == "ipc" else bind)
    try:
        worker, client = serving.dealer(folder.gpu), serving.dealer(folder.alice)
        assert isinstance(hears(worker, REGISTRATION), m.WorkerRegistered)
        assert isinstance(hears(client, GREETING), m.SessionOpened)
        client.send(encode(submit("x")))
        lease = hears(worker)
        assert isinstance(lease, m.Lease)
        texts = Texts(texts=["X"])
        worker.send(encode(m.LeaseAnswered(lease=lease.lease, indices=np.zeros(1, np.int32), answers=texts)))
        answered = hears(client)
        assert isinstance(answered, m.Answered)
        assert answered.answers == texts
    finally:
        serving.close()


def arrival_at(router: Router) -> Arrival:
    deadline = time.monotonic() + DEADLINE_S
    while (arrival := router.receive()) is None:
        assert time.monotonic() < deadline, "nothing came"
        wait(router, 0.05)
    return arrival


def test_a_router_knows_whose_key_each_frame_came_under(folder: Folder) -> None:
    allowed = AllowList(folder.path)
    with Router(parse_endpoint(ANY_PORT), allowed) as router:
        for key in (folder.alice, folder.gpu):
            with Dealer(parse_endpoint(router.endpoint), key) as dealer:
                dealer.send(b"hello")
                assert allowed.holder(arrival_at(router).key) == key.holder


def test_a_router_without_keys_knows_of_none() -> None:
    with Router(parse_endpoint(ANY_PORT)) as router, Dealer(parse_endpoint(router.endpoint)) as dealer:
        dealer.send(b"hello")
        assert arrival_at(router).key is None


def test_all_addresses_may_be_bound_with_keys(folder: Folder) -> None:
    serving = Serving(folder.path, "tcp://0.0.0.0:*")
    try:
        port = serving.endpoint.rpartition(":")[2]
        serving.endpoint = f"tcp://127.0.0.1:{port}"
        assert isinstance(hears(serving.dealer(folder.alice), GREETING), m.SessionOpened)
    finally:
        serving.close()
    with pytest.raises(UsageError, match="--keys"):
        Router(parse_endpoint("tcp://0.0.0.0:*"))


# --- Who does not ----------------------------------------------------------------------------------------------------


def test_a_key_that_is_not_let_in_is_refused_at_once(
    serving: Serving, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = stranger()
    with pytest.raises(NotAllowed, match="refuses this key, that of client 'alice'") as error:
        hears(serving.dealer(replace(folder.alice, pair=unknown)), GREETING)
    assert str(folder.alice.path) in error.value.message
    until(lambda: "refused connections" in caplog.text)
    assert (
        f"refused connections: 1 brought a key that is not among those let in; the last key was {unknown.public} from 127.0.0.1"
        in (caplog.text)
    )


def test_a_key_does_not_serve_without_its_secret(serving: Serving, folder: Folder) -> None:
    forged = KeyPair(folder.alice.pair.public, stranger().secret)
    assert hears(serving.dealer(replace(folder.alice, pair=forged)), GREETING, patience_s=0.5) is None


def test_whoever_has_no_key_is_told_that_one_is_wanted(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NotAllowed, match="wants a key") as error:
        hears(serving.dealer(None), GREETING)
    for words in ("key_file=", "--key-file", "birdie-zmq keys new client NAME"):
        assert words in error.value.message
    until(lambda: "refused connections" in caplog.text)


def test_a_key_for_a_broker_that_has_none_is_not_used(serving_without_keys: Serving, folder: Folder) -> None:
    with pytest.raises(NotAllowed, match="has no keys"):
        hears(serving_without_keys.dealer(folder.alice), GREETING)


def test_a_client_does_not_talk_to_a_broker_with_another_key(tmp_path: Path, folder: Folder) -> None:
    """As to one that stands in between: it lets everybody in, and has a key of its own."""
    other = Folder(tmp_path / "other")
    new_key(other.path, "client", "carol", carol := tmp_path / "carol")
    allowed = AllowList(other.path)
    allowed.admits = allowed.holder = lambda key: folder.alice.holder  # type: ignore[method-assign,assignment]
    with Router(parse_endpoint(ANY_PORT), allowed) as router:
        with Dealer(parse_endpoint(router.endpoint), folder.alice) as dealer:
            dealer.send(b"a prompt")
            deadline = time.monotonic() + 1.0
            while time.monotonic() < deadline:
                wait(router, 0.02)
                wait(dealer, 0)
                assert router.receive() is None
                assert dealer.receive() is None
            assert dealer.doubt is not None
            assert f"another key than the one in {folder.alice.path}" in dealer.doubt
            assert "a key file for a broker with another key" in str(router.refused_connections())
        with Dealer(parse_endpoint(router.endpoint), read_peer_key(carol)) as dealer:
            dealer.send(b"a prompt")
            assert arrival_at(router).frame == b"a prompt"


def test_a_scanner_cannot_fill_the_log(serving: Serving, folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    began = time.monotonic()
    for _ in range(50):
        with (
            pytest.raises(NotAllowed),
            Dealer(parse_endpoint(serving.endpoint), replace(folder.alice, pair=stranger())) as d,
        ):
            hears(d, GREETING)
    took_s = time.monotonic() - began
    time.sleep(2.5)
    lines = [record.getMessage() for record in caplog.records if "refused connections" in record.getMessage()]
    assert 1 <= len(lines) <= took_s + 3
    counts = [re.fullmatch(r"refused connections: (\d+) brought a key that is not .*", line) for line in lines]
    assert sum(int(count[1]) for count in counts if count is not None) == 50


def test_a_broker_whose_authenticator_has_ended_lets_nobody_in_and_says_so(folder: Folder) -> None:
    with Router(parse_endpoint(ANY_PORT), AllowList(folder.path)) as router:
        assert router._authentication is not None
        router._authentication._authenticator.stop()
        with Dealer(parse_endpoint(router.endpoint), folder.alice) as dealer:
            dealer.send(b"a prompt")
            wait(router, 0.3)
            assert router.receive() is None
        with pytest.raises(BirdieError, match="start the broker again"):
            router.refused_connections()


def test_a_lookup_that_fails_refuses_and_the_next_one_is_answered(
    serving: Serving, folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(serving.router.keys, "admits", lambda key: 1 / 0)
        with pytest.raises(NotAllowed):
            hears(serving.dealer(folder.alice), GREETING)
    assert isinstance(hears(serving.dealer(folder.alice), GREETING), m.SessionOpened)
    until(lambda: "1 brought a key that could not be looked up (ZeroDivisionError" in caplog.text)


def test_a_stranger_that_never_shows_a_key_is_hung_up_on(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "HANDSHAKE_MS", 200)
    with (
        Router(parse_endpoint(ANY_PORT), AllowList(folder.path)) as router,
        socket.create_connection(("127.0.0.1", int(router.endpoint.rpartition(":")[2]))) as silent,
    ):
        silent.settimeout(DEADLINE_S)
        while silent.recv(1_000):
            pass


OLD_GREETING = b"\xff" + bytes(8) + b"\x7f\x01\x05" + bytes(2)
"""ZMTP 2.0, which knew no keys: a DEALER without a routing id."""


def test_an_old_protocol_is_no_way_past_the_keys(folder: Folder) -> None:
    with Router(parse_endpoint(ANY_PORT), AllowList(folder.path)) as router:
        with socket.create_connection(("127.0.0.1", int(router.endpoint.rpartition(":")[2]))) as old:
            old.settimeout(DEADLINE_S)
            old.sendall(OLD_GREETING + b"\x00\x05hello")
            with contextlib.suppress(ConnectionError):
                while old.recv(1_000):
                    pass
        wait(router, 0.2)
        assert router.receive() is None
    with (
        Router(parse_endpoint(ANY_PORT)) as router,
        socket.create_connection(("127.0.0.1", int(router.endpoint.rpartition(":")[2]))) as old,
    ):
        old.sendall(OLD_GREETING + b"\x00\x05hello")
        assert arrival_at(router).frame == b"hello"


@pytest.mark.parametrize("has_key", [True, False])
def test_a_client_with_a_key_speaks_no_old_protocol(folder: Folder, has_key: bool) -> None:
    heard = b""
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
            connection.sendall(OLD_GREETING.replace(b"\x05", b"\x06"))
            while chunk := connection.recv(1_000):
                heard += chunk
    assert (b"a prompt" in heard) == (not has_key)


# --- Roles -----------------------------------------------------------------------------------------------------------


def test_a_clients_key_registers_no_worker(serving: Serving, folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    impostor, client = serving.dealer(folder.alice), serving.dealer(folder.bob)
    assert "the key of client 'alice' may not send RegisterWorker" in refused(impostor, REGISTRATION)
    hears(client, GREETING)
    assert hears(client, submit("secret"), m.Ping()) == m.Pong(workers=0)
    assert hears(impostor, patience_s=0.2) is None
    assert "refused a message: the key of client 'alice' may not send RegisterWorker" in caplog.text


def test_a_workers_key_opens_no_session(serving: Serving, folder: Folder) -> None:
    assert "the key of worker 'gpu1' may not send OpenSession" in refused(serving.dealer(folder.gpu), GREETING)


def test_a_role_in_a_file_is_worth_nothing_to_its_holder(serving: Serving, folder: Folder) -> None:
    folder.alice.path.write_text(folder.alice.path.read_text().replace("role: client", "role: worker"))
    forged = read_peer_key(folder.alice.path)
    assert forged.holder.role == "worker"
    assert "client 'alice'" in refused(serving.dealer(forged), REGISTRATION)


# --- Keys that come and go -------------------------------------------------------------------------------------------


def test_a_revoked_client_is_refused_in_the_middle_of_its_session(
    serving: Serving, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    client, worker = serving.dealer(folder.alice), serving.dealer(folder.gpu)
    hears(worker, REGISTRATION)
    hears(client, GREETING)
    client.send(encode(submit("x")))
    lease = hears(worker)
    revoke_key(folder.path, "client", "alice")
    assert hears(worker) == m.CancelLease(lease=lease.lease)
    assert refused(client, m.Ping()) == "the key of client 'alice' has been revoked"
    assert "the key of client 'alice' is let in no more" in caplog.text
    assert "refused a message: the key of client 'alice' has been revoked" in caplog.text
    client.reconnect()
    with pytest.raises(NotAllowed, match="refuses this key"):
        hears(client, GREETING)


def test_a_revoked_worker_gets_no_more_work(serving: Serving, folder: Folder) -> None:
    client, worker = serving.dealer(folder.alice), serving.dealer(folder.gpu)
    hears(worker, REGISTRATION)
    hears(client, GREETING)
    revoke_key(folder.path, "worker", "gpu1")
    until(lambda: hears(client, m.Ping()) == m.Pong(workers=0))
    client.send(encode(submit("secret")))
    assert hears(worker, patience_s=0.2) is None
    assert "revoked" in refused(worker, m.Heartbeat(phase="idle"))


def test_a_key_made_while_the_broker_runs_gets_in(serving: Serving, folder: Folder) -> None:
    assert isinstance(hears(serving.dealer(folder.key("client", "carol")), GREETING), m.SessionOpened)


# --- Identities ------------------------------------------------------------------------------------------------------


@pytest.fixture
def forge(folder: Folder, serving: Serving) -> Iterator[Callable[[bytes], zmq.Socket[bytes]]]:
    """Bob's own program, which says that its connection has some routing id."""
    with zmq.Context() as context:
        made: list[zmq.Socket[bytes]] = []

        def forge(routing_id: bytes) -> zmq.Socket[bytes]:
            forger: zmq.Socket[bytes] = context.socket(zmq.DEALER)
            forger.linger = 0
            forger.routing_id = routing_id
            forger.curve_publickey = folder.bob.pair.public.encode()
            forger.curve_secretkey = folder.bob.pair.secret.encode()
            forger.curve_serverkey = folder.bob.broker.encode()
            forger.connect(serving.endpoint)
            made.append(forger)
            return forger

        yield forge
        for forger in made:
            forger.close()


def seen_by(router: Router, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The routing ids of all that a router receives from now on."""
    seen: list[bytes] = []
    receive = router.receive

    def noting() -> Any:
        if (arrival := receive()) is not None:
            seen.append(arrival.peer)
        return arrival

    monkeypatch.setattr(router, "receive", noting)
    return seen


def test_a_routing_id_that_is_in_use_gets_the_forger_nothing(
    serving: Serving, folder: Folder, forge: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = seen_by(serving.router, monkeypatch)
    client, worker = serving.dealer(folder.alice), serving.dealer(folder.gpu)
    hears(client, GREETING)
    forged = forge(seen[0])
    for message in (m.CloseSession(), GREETING, submit("forged")):
        forged.send(encode(message))
    assert not forged.poll(500)
    hears(worker, REGISTRATION)
    client.send(encode(submit("x")))
    lease = hears(worker)
    assert lease.work == RollingWork(texts=["x"])
    texts = Texts(texts=["X"])
    worker.send(encode(m.LeaseAnswered(lease=lease.lease, indices=np.zeros(1, np.int32), answers=texts)))
    assert hears(client).answers == texts
    assert not forged.poll(100)


def test_a_routing_id_whose_owner_left_gets_the_forger_no_session(
    serving: Serving, folder: Folder, forge: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = seen_by(serving.router, monkeypatch)
    client = serving.dealer(folder.alice)
    hears(client, GREETING)
    client.reconnect()

    def attempt() -> bool:
        # It comes to nothing as long as the ROUTER has not noticed that the owner has left.
        forged = forge(seen[0])
        forged.send(encode(m.Ping()))
        if not forged.poll(200):
            return False
        refusal = decode(forged.recv())
        assert isinstance(refusal, m.Refusal)
        assert type(refusal.error.to_error()) is NotAllowed
        return refusal.error.message == "client 'bob' speaks as client 'alice'"

    until(attempt)


def test_a_chosen_routing_id_is_refused(serving: Serving, forge: Callable[[bytes], Any]) -> None:
    chosen = forge(b"alice")
    chosen.send(encode(GREETING))
    refusal = decode(chosen.recv())
    assert isinstance(refusal, m.Refusal)
    assert "client 'bob' may not choose the routing id" in refusal.error.message


# --- What a person sees ----------------------------------------------------------------------------------------------


def ask(endpoint: str, key_file: Path | None) -> None:
    with Client(endpoint, ModelSpec(tag="A"), settings=IMPATIENT, key_file=key_file) as client:
        client.run([Job(RollingWork(texts=["x"]), [0])], 1)


def test_a_client_fails_at_once_with_the_reason(serving: Serving, folder: Folder) -> None:
    began = time.monotonic()
    with pytest.raises(NotAllowed, match="may not send OpenSession"):
        ask(serving.endpoint, folder.gpu.path)
    assert time.monotonic() - began < IMPATIENT.connect_s


def test_a_client_that_was_refused_may_try_again(serving: Serving, folder: Folder, tmp_path: Path) -> None:
    new_key(folder.path, "client", "dave", dave := tmp_path / "dave")
    public = folder.path / "clients" / "dave"
    public.rename(tmp_path / "aside")
    settings = ClientSettings(connect_s=5.0, worker_wait_s=0.1, ping_s=0.05)
    with Client(serving.endpoint, ModelSpec(tag="A"), settings=settings, key_file=dave) as client:
        with pytest.raises(NotAllowed, match="refuses this key"):
            client.describe()
        (tmp_path / "aside").rename(public)
        with pytest.raises(BirdieError, match="no worker"):
            client.describe()


def test_the_time_out_names_the_key_where_it_may_be_the_cause(folder: Folder, tmp_path: Path) -> None:
    other = Folder(tmp_path / "other")
    serving = Serving(other.path)
    try:
        with pytest.raises(BrokerUnavailable, match="within 1 s") as error:
            ask(serving.endpoint, folder.alice.path)
        assert f"another key than the one in {folder.alice.path}" in error.value.message
    finally:
        serving.close()
    with pytest.raises(BrokerUnavailable) as error:
        ask(serving.endpoint, folder.alice.path)
    assert "key" not in error.value.message.replace(str(folder.alice.path), "")


@pytest.mark.parametrize("whose", ["alice", "nobody", "stranger"])
def test_a_worker_ends_with_the_reason(serving: Serving, folder: Folder, whose: str) -> None:
    key, words = {
        "alice": (folder.alice, "may not send RegisterWorker"),
        "nobody": (None, "wants a key"),
        "stranger": (replace(folder.gpu, pair=stranger()), "refuses this key, that of worker 'gpu1'"),
    }[whose]
    with (
        StopSignals() as stop,
        Agent(
            serving.dealer(key),
            AgentSettings(),
            engine="jax",
            process_module="none",
            environment={},
            api=None,
        ) as loop,
        pytest.raises(NotAllowed, match=words),
    ):
        loop.run(stop)


def test_a_worker_that_waits_for_a_broker_with_another_key_says_so(
    serving: Serving, folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agent, "_REGISTER_S", 0.3)
    ends, stops = os.pipe()
    stop = cast(StopSignals, SimpleNamespace(descriptor=ends))
    timer = threading.Timer(1.5, os.write, (stops, b"!"))
    timer.start()
    dealer = serving.dealer(replace(folder.gpu, broker=stranger().public))
    settings = AgentSettings(heartbeat_s=0.1)
    with Agent(dealer, settings, engine="jax", process_module="none", environment={}, api=None) as loop:
        loop.run(stop)
    timer.join()
    os.close(ends)
    os.close(stops)
    assert f"another key than the one in {folder.gpu.path}" in caplog.text


def test_a_broker_that_cannot_bind_leaves_no_authenticator(serving: Serving, folder: Folder) -> None:
    before = threading.active_count()
    with pytest.raises(UsageError, match="in use"):
        Router(parse_endpoint(serving.endpoint), AllowList(folder.path))
    assert threading.active_count() == before


def test_a_holder_is_not_its_name() -> None:
    assert Principal("client", "alice", "a") != Principal("worker", "alice", "a")

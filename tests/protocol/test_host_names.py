"""Brokers named by host names: a peer finds the address that the broker has, and a broker binds all addresses of its name."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from birdie_zmq.client import Client
from birdie_zmq.errors import BrokerUnavailable, UsageError
from birdie_zmq.protocol.addresses import bindable_addresses, look_up
from birdie_zmq.protocol.dealer import Dealer
from birdie_zmq.protocol.endpoints import TcpEndpoint, parse_endpoint
from birdie_zmq.protocol.router import Router
from birdie_zmq.protocol.security.allow_list import AllowList
from birdie_zmq.protocol.security.keys import new_key, read_peer_key
from birdie_zmq.protocol.transport import wait
from birdie_zmq.settings import ClientSettings
from birdie_zmq.tools.doctor import broker as doctor
from birdie_zmq.types import ModelSpec
from tests.protocol.name_service import NameService, black_hole

DEADLINE_S = 20.0
BOTH = ["127.0.0.1", "::1"]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameService]:
    service = NameService(monkeypatch)
    yield service
    service.resumed.set()


@pytest.fixture
def port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        number: int = listener.getsockname()[1]
        return number


def exchange(dealer: Dealer, router: Router, frame: bytes = b"hello") -> None:
    """Let a frame cross from the peer to the broker and back."""
    dealer.send(frame)
    deadline = time.monotonic() + DEADLINE_S
    while (received := router.receive()) is None:
        assert time.monotonic() < deadline, f"nothing came; {dealer.hint}"
        wait(dealer, 0.01)
        wait(router, 0.01)
    assert received.frame == frame
    assert router.send(received.peer, frame)
    while dealer.receive() is None:
        assert time.monotonic() < deadline, "no answer came"
        wait(dealer, 0.01)


# --- Connecting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", ["127.0.0.1", "[::1]"])
@pytest.mark.parametrize("order", [BOTH, BOTH[::-1]])
def test_the_broker_is_found_whichever_address_the_name_gives_first(
    names: NameService, bound: str, order: list[str]
) -> None:
    names.addresses["dual"] = order
    with Router(parse_endpoint(f"tcp://{bound}:*")) as router:
        port = router.endpoint.rpartition(":")[2]
        with Dealer(parse_endpoint(f"tcp://dual:{port}")) as dealer:
            exchange(dealer, router)
            while dealer.hint is not None:
                wait(dealer, 0.01)


def test_the_broker_is_found_by_its_name_with_keys(names: NameService, tmp_path: Path) -> None:
    names.addresses["dual"] = BOTH[::-1]
    key = read_peer_key(new_key(tmp_path / "keys", "client", "alice"))
    with Router(parse_endpoint("tcp://127.0.0.1:*"), AllowList(tmp_path / "keys")) as router:
        port = router.endpoint.rpartition(":")[2]
        with Dealer(parse_endpoint(f"tcp://dual:{port}"), key) as dealer:
            exchange(dealer, router)


def test_the_broker_may_start_after_its_peer_and_move_to_another_address(names: NameService, port: int) -> None:
    names.addresses["dual"] = BOTH[::-1]
    with Dealer(parse_endpoint(f"tcp://dual:{port}")) as dealer:
        dealer.send(b"early")
        for _ in range(5):
            wait(dealer, 0.1)
        with Router(parse_endpoint(f"tcp://127.0.0.1:{port}")) as router:
            deadline = time.monotonic() + DEADLINE_S
            while (received := router.receive()) is None:
                assert time.monotonic() < deadline
                wait(dealer, 0.02)
            assert received.frame == b"early"
        with Router(parse_endpoint(f"tcp://[::1]:{port}")) as router:
            wait(dealer, 0.5)
            exchange(dealer, router, b"moved")
        names.addresses["dual"] = ["127.0.0.2"]
        with Router(parse_endpoint(f"tcp://127.0.0.2:{port}")) as router:
            wait(dealer, 0.5)
            exchange(dealer, router, b"another address of the name")


def test_a_name_that_resolves_later_is_found(names: NameService, port: int) -> None:
    with (
        Router(parse_endpoint(f"tcp://127.0.0.1:{port}")) as router,
        Dealer(parse_endpoint(f"tcp://late:{port}")) as dealer,
    ):
        for _ in range(3):
            wait(dealer, 0.1)
        assert dealer.hint == "the name late does not resolve (Name or service not known)"
        names.addresses["late"] = ["127.0.0.1"]
        exchange(dealer, router)


def test_a_black_holed_address_costs_half_a_second_and_blocks_nothing(names: NameService) -> None:
    names.addresses["dual"] = ["127.0.0.1", "127.0.0.2"]
    with (
        black_hole() as port,
        Router(parse_endpoint(f"tcp://127.0.0.2:{port}")) as router,
        Dealer(parse_endpoint(f"tcp://dual:{port}")) as dealer,
    ):
        began = time.monotonic()
        dealer.send(b"hello")
        waits = 0
        while router.receive() is None:
            wait(dealer, 0.02)
            waits += 1
            assert time.monotonic() - began < DEADLINE_S, dealer.hint
        assert time.monotonic() - began >= 0.4
        assert waits >= 5


def test_a_resolver_that_does_not_answer_blocks_nothing(names: NameService, port: int) -> None:
    names.addresses["slow"] = ["127.0.0.1"]
    names.resumed.clear()
    began = time.monotonic()
    with Dealer(parse_endpoint(f"tcp://slow:{port}")) as dealer:
        dealer.send(b"hello")
        for _ in range(5):
            wait(dealer, 0.01)
        assert dealer.hint == "the name slow does not resolve (it has not been looked up yet)"
        dealer.reconnect()
    assert time.monotonic() - began < 5.0


def test_another_service_on_the_first_address_is_passed_over(names: NameService) -> None:
    names.addresses["dual"] = BOTH[::-1]
    with contextlib.closing(socket.create_server(("::1", 0), family=socket.AF_INET6)) as silent:
        port = silent.getsockname()[1]
        with (
            Router(parse_endpoint(f"tcp://127.0.0.1:{port}")) as router,
            Dealer(parse_endpoint(f"tcp://dual:{port}")) as dealer,
        ):
            exchange(dealer, router)


def test_the_socket_is_connected_to_one_broker_only(names: NameService) -> None:
    names.addresses["dual"] = BOTH
    with Router(parse_endpoint("tcp://127.0.0.1:*")) as first:
        port = first.endpoint.rpartition(":")[2]
        with (
            Router(parse_endpoint(f"tcp://[::1]:{port}")) as second,
            Dealer(parse_endpoint(f"tcp://dual:{port}")) as dealer,
        ):
            for _ in range(10):
                exchange(dealer, first)
            assert second.receive() is None


def test_the_errors_of_client_and_doctor_name_the_addresses_tried(names: NameService, port: int) -> None:
    names.addresses["dual"] = BOTH[::-1]
    endpoint = f"tcp://dual:{port}"
    tried = f"addresses tried for dual: tcp://[::1]:{port} (no connection), tcp://127.0.0.1:{port} (no connection)"
    client = Client(endpoint, ModelSpec(tag="demo"), settings=ClientSettings(connect_s=0.5))
    with client, pytest.raises(BrokerUnavailable, match=re.escape(tried)):
        client.describe()
    (finding,) = doctor.check(endpoint, None, None, answer_s=0.5)
    assert tried in finding.text
    (finding,) = doctor.check(f"tcp://nowhere:{port}", None, None, answer_s=0.5)
    assert "the name nowhere does not resolve (Name or service not known)" in finding.text


# --- Looking up and binding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".org", "no_such_host.invalid"])
def test_an_impossible_name_has_a_reason(name: str) -> None:
    with pytest.raises(OSError, match=r"."):
        look_up(TcpEndpoint(name, 1))


def test_an_address_that_comes_twice_is_tried_once(names: NameService) -> None:
    names.addresses["gpu_7"] = ["10.0.0.1", "::1", "10.0.0.1"]
    assert look_up(TcpEndpoint("gpu_7", 1)) == [TcpEndpoint("10.0.0.1", 1), TcpEndpoint("[::1]", 1)]


def test_all_addresses_of_a_name_are_bound_at_one_port(names: NameService) -> None:
    names.addresses["localhost"] = BOTH[::-1]
    with Router(parse_endpoint("tcp://localhost:*")) as router:
        port = router.endpoint.rpartition(":")[2]
        assert router.endpoints == [f"tcp://127.0.0.1:{port}", f"tcp://[::1]:{port}"]
        for endpoint in (*router.endpoints, f"tcp://localhost:{port}"):
            with Dealer(parse_endpoint(endpoint)) as dealer:
                exchange(dealer, router)


def test_an_address_that_this_machine_lacks_is_left_out_with_a_warning(
    names: NameService, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    names.addresses["gpu-7"] = ["203.0.113.1", "127.0.0.1"]
    new_key(tmp_path / "keys", "client", "alice")
    with Router(parse_endpoint("tcp://gpu-7:*"), AllowList(tmp_path / "keys")) as router:
        assert [endpoint.rpartition(":")[0] for endpoint in router.endpoints] == ["tcp://127.0.0.1"]
    assert "tcp://203.0.113.1:* is not bound: this machine does not have this address" in caplog.text
    names.addresses["gpu-7"] = ["203.0.113.1", "203.0.113.2"]
    with pytest.raises(UsageError, match=r"cannot bind tcp://203\.0\.113\.\d:\*: this machine has no such address"):
        Router(parse_endpoint("tcp://gpu-7:*"), AllowList(tmp_path / "keys"))


def test_an_address_of_the_name_in_use_is_an_error(names: NameService) -> None:
    names.addresses["localhost"] = BOTH
    with Router(parse_endpoint("tcp://[::1]:*")) as router:
        port = router.endpoint.rpartition(":")[2]
        with pytest.raises(UsageError, match=rf"cannot bind tcp://\[::1\]:{port}: the port is in use"):
            Router(parse_endpoint(f"tcp://localhost:{port}"))


@pytest.mark.parametrize("name", ["localhost", "gpu-7", "localhost.example.org"])
@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["127.0.0.1", "10.0.0.1"], ["::1", "fd00::1"], ["0.0.0.0"]])
def test_a_name_with_an_address_that_others_reach_is_not_bound_without_keys(
    names: NameService, name: str, addresses: list[str]
) -> None:
    names.addresses[name] = addresses
    endpoint = parse_endpoint(f"tcp://{name}:5555")
    with pytest.raises(UsageError, match=f"an address of {name}, could be reached from other machines"):
        bindable_addresses(endpoint)
    assert len(bindable_addresses(endpoint, has_keys=True)) == len(addresses)


def test_a_name_with_loopback_addresses_only_is_bound_without_keys(names: NameService) -> None:
    names.addresses["gpu-7"] = ["127.0.1.1"]
    assert bindable_addresses(parse_endpoint("tcp://gpu-7:1")) == [TcpEndpoint("127.0.1.1", 1)]


def test_a_name_that_does_not_resolve_is_not_bound(names: NameService) -> None:
    with pytest.raises(UsageError, match=r"the name gpu-8 does not resolve \(Name or service not known\)"):
        bindable_addresses(parse_endpoint("tcp://gpu-8:1"), has_keys=True)


def test_an_interface_is_bound_with_keys_only(names: NameService) -> None:
    with pytest.raises(UsageError, match="could be reached from other machines"):
        bindable_addresses(parse_endpoint("tcp://lo:1"))
    assert bindable_addresses(parse_endpoint("tcp://lo:1"), has_keys=True) == [TcpEndpoint("lo", 1)]
    assert names.lookups == 0

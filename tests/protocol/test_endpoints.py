"""Endpoints: which texts are valid, and which addresses the broker may bind."""

from pathlib import Path

import pytest

from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.endpoints import (
    DEFAULT_ENDPOINT,
    DEFAULT_PORT,
    MAX_IPC_PATH_BYTES,
    IpcEndpoint,
    TcpEndpoint,
    check_bindable,
    parse_endpoint,
)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("tcp://127.0.0.1:5555", TcpEndpoint("127.0.0.1", 5555)),
        ("tcp://localhost:1", TcpEndpoint("localhost", 1)),
        ("tcp://gpu-7.example.org:65535", TcpEndpoint("gpu-7.example.org", 65535)),
        ("tcp://gpu_7.example.org.:1", TcpEndpoint("gpu_7.example.org.", 1)),
        ("tcp://[::1]:5555", TcpEndpoint("[::1]", 5555)),
        ("tcp://[fe80::1%eth0.7]:5555", TcpEndpoint("[fe80::1%eth0.7]", 5555)),
        ("tcp://[fe80::1%2]:5555", TcpEndpoint("[fe80::1%2]", 5555)),
        ("tcp://127.0.0.1:*", TcpEndpoint("127.0.0.1", 0)),
        ("tcp://127.0.0.1:0", TcpEndpoint("127.0.0.1", 0)),
        ("ipc:///run/birdie/broker", IpcEndpoint(Path("/run/birdie/broker"))),
    ],
)
def test_an_endpoint_is_parsed(text: str, endpoint: TcpEndpoint | IpcEndpoint) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize(
    "text", ["tcp://127.0.0.1:5555", "tcp://[::1]:5555", "tcp://127.0.0.1:*", "ipc:///run/birdie/broker"]
)
def test_an_endpoint_round_trips(text: str) -> None:
    assert str(parse_endpoint(text)) == text


def test_the_default_endpoint_is_valid() -> None:
    assert parse_endpoint(DEFAULT_ENDPOINT) == TcpEndpoint("127.0.0.1", DEFAULT_PORT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5555",
        "127.0.0.1:5555",
        "tcp://127.0.0.1",
        "tcp://:5555",
        "tcp://127.0.0.1:",
        "tcp://127.0.0.1:-1",
        "tcp://127.0.0.1:http",
        "tcp://::1:5555",
        "tcp://[::1%]:5555",
        "tcp://10.0.0.1%eth0:5555",
        "tcp://127.0.0.1:5555/",
        "tcp://127.0.0.1:5555\n",
        "tcp://user@host:5555",
        "tcp://a b:5555",
        "udp://127.0.0.1:5555",
        "inproc://broker",
    ],
)
def test_an_invalid_endpoint_is_rejected_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=DEFAULT_ENDPOINT):
        parse_endpoint(text)


@pytest.mark.parametrize("text", ["tcp://[:::]:1", "tcp://[1.2.3.4]:1", "tcp://[face]:1"])
def test_brackets_hold_an_ipv6_address(text: str) -> None:
    with pytest.raises(UsageError, match="is not an IPv6 address"):
        parse_endpoint(text)


@pytest.mark.parametrize(
    ("host", "is_name", "is_loopback"),
    [
        ("127.0.0.1", False, True),
        ("10.0.0.1", False, False),
        ("[::1]", False, True),
        ("[fe80::1%eth0]", False, False),
        ("localhost", True, False),
        ("gpu_7", True, False),
        ("127.1", True, False),
    ],
)
def test_names_and_loopback_addresses_are_recognised(host: str, is_name: bool, is_loopback: bool) -> None:
    endpoint = TcpEndpoint(host, 1)
    assert (endpoint.is_name, endpoint.is_loopback) == (is_name, is_loopback)


def test_a_port_has_at_most_16_bits() -> None:
    with pytest.raises(UsageError, match="65535"):
        parse_endpoint("tcp://127.0.0.1:65536")


@pytest.mark.parametrize("text", ["ipc://", "ipc://broker", "ipc://./broker", "ipc://~/broker"])
def test_an_ipc_path_must_be_absolute(text: str) -> None:
    with pytest.raises(UsageError, match="absolute"):
        parse_endpoint(text)


def test_the_length_of_an_ipc_path_is_limited() -> None:
    longest = "/" + "ä" * (MAX_IPC_PATH_BYTES // 2)
    assert len(longest.encode()) == MAX_IPC_PATH_BYTES
    parse_endpoint(f"ipc://{longest}")
    with pytest.raises(UsageError, match=str(MAX_IPC_PATH_BYTES)):
        parse_endpoint(f"ipc://{longest}x")


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:5555", "tcp://127.8.8.8:5555", "tcp://[::1]:5555", "ipc:///b"])
def test_local_endpoints_may_be_bound(text: str) -> None:
    check_bindable(parse_endpoint(text))


@pytest.mark.parametrize(
    "text",
    [
        "tcp://0.0.0.0:5555",
        "tcp://[::]:5555",
        "tcp://10.0.0.1:5555",
        "tcp://[fe80::1]:5555",
        "tcp://lo:5555",
        "tcp://localhost:5555",
        "tcp://localhost.example.org:5555",
        "tcp://127.0.0.1.example.org:5555",
        "tcp://[::ffff:10.0.0.1]:5555",
    ],
)
def test_endpoints_reachable_by_others_may_not_be_bound(text: str) -> None:
    with pytest.raises(UsageError, match="reached from other machines"):
        check_bindable(parse_endpoint(text))


def test_any_address_may_be_bound_with_keys() -> None:
    everywhere = parse_endpoint("tcp://0.0.0.0:5555")
    check_bindable(everywhere, has_keys=True)
    with pytest.raises(UsageError) as raised:
        check_bindable(everywhere)
    for message in ("birdie-zmq keys new client NAME", "birdie-zmq keys new worker NAME", "--keys", "127.0.0.1"):
        assert message in raised.value.message

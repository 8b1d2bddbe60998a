"""The HTTP server of the status page, tested with real requests."""

import http.client
import re
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from birdie_zmq.broker.status import http_server
from birdie_zmq.broker.status.http_server import StatusServer
from birdie_zmq.broker.status.snapshot import Status
from birdie_zmq.errors import UsageError
from birdie_zmq.protocol import messages as m
from birdie_zmq.types import ModelSpec
from tests.broker.harness import CLIENT, WORKER, A, BrokerHarness, submit

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def server(harness: BrokerHarness) -> Iterator[StatusServer]:
    registration = m.RegisterWorker(package_version="1", engine="jax", host=HOSTILE, process_id=1, capacity=1)
    harness.send(WORKER, registration, m.Heartbeat(phase="compiling 4 x 128", model=A))
    harness.send(CLIENT, submit(1), submit(2, ModelSpec(tag=HOSTILE + '"\\'), "xx"))
    harness.advance(0.5)
    with StatusServer(0, "tcp://127.0.0.1:5555") as server:
        server.update_status(harness.broker, harness.now)
        yield server


def port_of(server: StatusServer) -> int:
    return int(server.address.rstrip("/").rpartition(":")[2])


def request(
    server: StatusServer, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_the_page_is_one_file_without_external_resources(server: StatusServer) -> None:
    answer, body = request(server, "/")
    assert (answer.status, answer.getheader("Content-Type")) == (200, "text/html; charset=utf-8")
    page = body.decode()
    assert not re.search(r"""(src|href)=["']?(https?:|//)|@import|url\(""", page.replace("http://www.w3.org", ""))
    # Strings from peers must never become markup.
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", page)


def test_the_content_security_policy_allows_only_the_scripts_of_the_page(server: StatusServer) -> None:
    for path in ("/", "/status.json", "/metrics", "/nothing"):
        answer, _ = request(server, path)
        rules = dict(rule.split(" ", 1) for rule in str(answer.getheader("Content-Security-Policy")).split("; "))
        assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
        assert rules["connect-src"] == "'self'"
        assert re.fullmatch(r"'sha256-[\w+/=]{44}'", rules["script-src"])
        assert re.fullmatch(r"'sha256-[\w+/=]{44}'", rules["style-src"])
        assert answer.getheader("X-Content-Type-Options") == "nosniff"
        assert answer.getheader("Cache-Control") == "no-store"
        assert answer.getheader("Access-Control-Allow-Origin") is None


def test_the_json_is_the_last_snapshot_with_its_age(server: StatusServer) -> None:
    answer, body = request(server, "/status.json?x=1")
    assert answer.getheader("Content-Type") == "application/json"
    status = msgspec.json.decode(body, type=Status)
    assert status.workers[0].host == HOSTILE
    assert status.age_s > 0


def test_the_metrics_are_parsed_by_the_prometheus_parser(server: StatusServer) -> None:
    answer, body = request(server, "/metrics")
    assert str(answer.getheader("Content-Type")).startswith("text/plain; version=")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert samples["birdie_zmq_workers", "compiling"] == 1
    assert samples["birdie_zmq_batches", "leased"] == 1
    assert samples["birdie_zmq_model_requests_waiting", HOSTILE + '"\\'] == 2
    assert samples["birdie_zmq_requests_answered_total",] == 0
    assert all(name.startswith("birdie_zmq_") for name, *_ in samples)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "PATCH"])
def test_only_get_is_supported(server: StatusServer, method: str) -> None:
    answer, _ = request(server, "/status.json", method)
    assert (answer.status, answer.getheader("Allow")) == (405, "GET")


@pytest.mark.parametrize("path", ["/nothing", "/../etc/passwd", "/status.json/", "/%2e%2e"])
def test_other_paths_are_not_found(server: StatusServer, path: str) -> None:
    answer, body = request(server, path)
    assert answer.status == 404
    assert b"passwd" not in body


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "127.3.2.1", "[::1]:5556"])
def test_loopback_host_headers_are_accepted(server: StatusServer, host: str) -> None:
    assert request(server, "/status.json", Host=host)[0].status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "10.0.0.1", "0.0.0.0", "", "[::]:80", "a@[::1]"],
)
@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics"])
def test_other_host_headers_are_refused(server: StatusServer, path: str, host: str) -> None:
    answer, body = request(server, path, Host=host)
    assert answer.status == 403
    assert b"demo" not in body


def request_raw(server: StatusServer, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
        return answer


def test_a_request_without_a_host_header_or_with_two_is_refused(server: StatusServer) -> None:
    assert b" 403 " in request_raw(server, b"GET /status.json HTTP/1.0\r\n\r\n").partition(b"\r\n")[0]
    two = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert b" 403 " in request_raw(server, two).partition(b"\r\n")[0]


def test_a_malformed_request_is_not_echoed(server: StatusServer) -> None:
    answer = request_raw(server, b"<script>alert(1)</script> x y z\r\n\r\n")
    assert b"malformed or unsupported request" in answer
    assert b"alert(1)" not in answer


def test_the_server_listens_on_loopback_only(server: StatusServer) -> None:
    assert server._server.server_address[0] == "127.0.0.1"


def test_a_port_in_use_is_an_error_that_says_what_to_do(server: StatusServer) -> None:
    with pytest.raises(UsageError, match="choose another port with --status-port"):
        StatusServer(port_of(server), "tcp://127.0.0.1:1")
    with pytest.raises(UsageError, match="70000 is not a port"):
        StatusServer(70_000, "tcp://127.0.0.1:1")


def test_idle_connections_take_a_bounded_number_of_threads(
    server: StatusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    # The server closes idle connections after 5 s; one that is closed earlier was never given a thread.
    idle = [socket.create_connection(("127.0.0.1", port_of(server)), timeout=3) for _ in range(60)]
    try:
        closed = [
            connection for connection in idle[http_server._MAX_CONCURRENT_REQUESTS :] if connection.recv(1) == b""
        ]
        assert len(closed) == 60 - http_server._MAX_CONCURRENT_REQUESTS
        assert threading.active_count() - before <= http_server._MAX_CONCURRENT_REQUESTS
    finally:
        for connection in idle:
            connection.close()


def test_the_status_is_unavailable_before_the_first_snapshot() -> None:
    with StatusServer(0, "tcp://127.0.0.1:5555") as server:
        assert request(server, "/status.json")[0].status == 503
        assert request(server, "/")[0].status == 200

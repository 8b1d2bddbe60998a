"""The sockets, over loopback TCP and Unix sockets: delivery of frames, binding, and `wait`."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from birdie_zmq.errors import UsageError
from birdie_zmq.protocol import transport
from birdie_zmq.protocol.dealer import Dealer
from birdie_zmq.protocol.endpoints import parse_endpoint
from birdie_zmq.protocol.router import Router
from birdie_zmq.protocol.transport import wait

DEADLINE_S = 10.0
ANY_PORT = "tcp://127.0.0.1:*"


@pytest.fixture
def router() -> Iterator[Router]:
    with Router(parse_endpoint(ANY_PORT)) as router:
        yield router


@pytest.fixture
def dealer(router: Router) -> Iterator[Dealer]:
    with Dealer(parse_endpoint(router.endpoint)) as dealer:
        yield dealer


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """Create a context for peers that behave differently from `Dealer` and `Router`."""
    with zmq.Context() as context:
        yield context


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until a condition that other threads change is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def receive_at_router(router: Router) -> tuple[bytes, bytes]:
    """Return the sender of the next frame, and the frame."""
    deadline = time.monotonic() + DEADLINE_S
    while (received := router.receive()) is None:
        assert time.monotonic() < deadline, "nothing came"
        wait(router, 0.1)
    return received.peer, received.frame


def receive_at_dealer(dealer: Dealer) -> bytes:
    """Return the next frame from the router."""
    deadline = time.monotonic() + DEADLINE_S
    while (received := dealer.receive()) is None:
        assert time.monotonic() < deadline, "nothing came"
        wait(dealer, 0.1)
    return received


# --- Frames ----------------------------------------------------------------------------------------------------------


def test_frames_arrive_in_order_in_both_directions(router: Router, dealer: Dealer) -> None:
    dealer.send(b"one")
    dealer.send(b"two")
    peer, first = receive_at_router(router)
    assert (first, receive_at_router(router)) == (b"one", (peer, b"two"))
    assert router.send(peer, b"three")
    assert receive_at_dealer(dealer) == b"three"


def test_receive_does_not_block(router: Router, dealer: Dealer) -> None:
    assert router.receive() is None
    assert dealer.receive() is None


def test_each_peer_is_addressed_separately(router: Router, dealer: Dealer) -> None:
    with Dealer(parse_endpoint(router.endpoint)) as other:
        dealer.send(b"first")
        peer, _ = receive_at_router(router)
        other.send(b"second")
        other_peer, _ = receive_at_router(router)
        router.send(other_peer, b"for the second")
        router.send(peer, b"for the first")
        assert (receive_at_dealer(dealer), receive_at_dealer(other)) == (b"for the first", b"for the second")


def test_a_message_of_several_frames_is_empty(
    router: Router, context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    with context.socket(zmq.DEALER) as foreign_peer:
        foreign_peer.connect(router.endpoint)
        foreign_peer.send_multipart([b"two", b"frames"])
        assert receive_at_router(router)[1] == b""
    with context.socket(zmq.DEALER) as foreign_peer:
        foreign_peer.bind(f"ipc://{tmp_path / 's'}")
        with Dealer(parse_endpoint(f"ipc://{tmp_path / 's'}")) as dealer:
            foreign_peer.send_multipart([b"two", b"frames"])
            assert receive_at_dealer(dealer) == b""


def test_an_oversize_frame_is_dropped_and_others_arrive(
    monkeypatch: pytest.MonkeyPatch, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    monkeypatch.setattr(transport, "MAX_FRAME_BYTES", 1_000)
    with Router(parse_endpoint(ANY_PORT)) as router, context.socket(zmq.DEALER) as foreign_peer:
        foreign_peer.linger = 0
        foreign_peer.connect(router.endpoint)
        foreign_peer.send(b"small")
        peer, _ = receive_at_router(router)
        foreign_peer.send(bytes(1_001))
        wait_until(lambda: not router.send(peer, b"are you there?"))
        with Dealer(parse_endpoint(router.endpoint)) as dealer:
            dealer.send(bytes(1_000))
            assert receive_at_router(router)[1] == bytes(1_000)


# --- Connecting and closing ------------------------------------------------------------------------------------------


def test_a_frame_to_an_unknown_peer_is_not_sent(router: Router) -> None:
    assert not router.send(b"nobody", b"hello")


def test_a_frame_to_a_peer_that_has_gone_is_not_sent(router: Router) -> None:
    with Dealer(parse_endpoint(router.endpoint)) as dealer:
        dealer.send(b"hello")
        peer, _ = receive_at_router(router)
        assert router.send(peer, b"hello")
    wait_until(lambda: not router.send(peer, b"are you there?"))


def test_a_dealer_may_start_before_its_router(tmp_path: Path) -> None:
    endpoint = parse_endpoint(f"ipc://{tmp_path / 'broker'}")
    with Dealer(endpoint) as dealer:
        dealer.send(b"early")
        with Router(endpoint) as router:
            assert receive_at_router(router)[1] == b"early"


def test_reconnecting_makes_a_new_peer(router: Router, dealer: Dealer) -> None:
    dealer.send(b"before")
    before, _ = receive_at_router(router)
    dealer.reconnect()
    dealer.send(b"after")
    after, frame = receive_at_router(router)
    assert frame == b"after"
    assert after != before
    assert router.send(after, b"welcome")
    assert receive_at_dealer(dealer) == b"welcome"


def test_reconnecting_drops_undelivered_frames(tmp_path: Path) -> None:
    endpoint = parse_endpoint(f"ipc://{tmp_path / 'broker'}")
    with Dealer(endpoint) as dealer:
        dealer.send(b"for a broker that is gone")
        dealer.reconnect()
        dealer.send(b"for the new one")
        with Router(endpoint) as router:
            assert receive_at_router(router)[1] == b"for the new one"


def test_closing_sends_the_last_frame(router: Router) -> None:
    with Dealer(parse_endpoint(router.endpoint)) as dealer:
        dealer.send(b"goodbye")
    assert receive_at_router(router)[1] == b"goodbye"


def test_closing_without_a_broker_does_not_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(transport, "LINGER_MS", 10)
    dealer = Dealer(parse_endpoint(f"ipc://{tmp_path / 'broker'}"))
    dealer.send(b"goodbye")
    began = time.monotonic()
    dealer.close()
    assert time.monotonic() - began < DEADLINE_S


# --- Binding ---------------------------------------------------------------------------------------------------------


def bind(endpoint: str) -> None:
    """Bind an endpoint and release it."""
    with Router(parse_endpoint(endpoint)):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_free_port_is_bound_and_reported(host: str) -> None:
    with Router(parse_endpoint(f"tcp://{host}:*")) as router:
        address, _, port = router.endpoint.rpartition(":")
        assert address == "tcp://127.0.0.1"
        assert int(port) > 0


def test_an_ipv6_endpoint_serves() -> None:
    with Router(parse_endpoint("tcp://[::1]:*")) as router, Dealer(parse_endpoint(router.endpoint)) as dealer:
        dealer.send(b"hello")
        assert receive_at_router(router)[1] == b"hello"


def test_a_port_in_use_is_reported_in_one_line(router: Router) -> None:
    with pytest.raises(UsageError) as raised:
        bind(router.endpoint)
    assert raised.value.message == (
        f"cannot bind {router.endpoint}: the port is in use; stop what uses it, or choose another with --bind"
    )


def test_a_non_loopback_address_is_not_bound() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UsageError, match="reached from other machines"):
        bind(f"tcp://0.0.0.0:{port}")
    bind(f"tcp://127.0.0.1:{port}")


def test_an_ipc_path_is_bound_by_one_broker_only(tmp_path: Path) -> None:
    endpoint = parse_endpoint(f"ipc://{tmp_path / 'broker'}")
    with Router(endpoint) as first, Dealer(endpoint) as dealer:
        with pytest.raises(UsageError, match="another broker is bound to it"):
            bind(str(endpoint))
        dealer.send(b"hello")
        assert receive_at_router(first)[1] == b"hello"


def test_an_ipc_path_can_be_bound_again_after_its_broker(tmp_path: Path) -> None:
    endpoint = parse_endpoint(f"ipc://{tmp_path / 'broker'}")
    for _ in range(2):
        with Router(endpoint) as router, Dealer(endpoint) as dealer:
            dealer.send(b"hello")
            assert receive_at_router(router)[1] == b"hello"


def test_the_socket_of_a_killed_broker_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "broker"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as killed:
        killed.bind(str(path))
    assert path.is_socket()
    with Router(parse_endpoint(f"ipc://{path}")) as router, Dealer(parse_endpoint(f"ipc://{path}")) as dealer:
        dealer.send(b"hello")
        assert receive_at_router(router)[1] == b"hello"


def test_an_ipc_path_in_a_missing_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory"):
        bind(f"ipc://{tmp_path / 'missing' / 'broker'}")


def test_an_ipc_path_that_is_a_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    with pytest.raises(UsageError, match="broker"):
        bind(f"ipc://{tmp_path / 'broker'}")


def test_a_file_that_is_not_a_socket_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        bind(f"ipc://{path}")
    assert path.read_text() == "precious"


def test_a_dealer_needs_a_port() -> None:
    with pytest.raises(UsageError, match="port"):
        Dealer(parse_endpoint("tcp://127.0.0.1:*")).close()


# --- Waiting ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_wait_returns_for_a_frame(router: Router, dealer: Dealer) -> None:
    dealer.send(b"hello")
    began = time.monotonic()
    assert wait(router, DEADLINE_S) == frozenset()
    assert time.monotonic() - began < DEADLINE_S
    assert router.receive() is not None


def test_wait_returns_for_a_readable_descriptor(router: Router, pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    timer = threading.Timer(0.02, os.write, (write_end, b"!"))
    timer.start()
    assert wait(router, DEADLINE_S, readable=[read_end]) == {read_end}
    timer.join()


def test_wait_returns_for_a_writable_descriptor(router: Router, pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    assert wait(router, DEADLINE_S, readable=[read_end], writable=[write_end]) == {write_end}


def test_wait_polls_a_descriptor_in_both_directions(router: Router) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while ours.send(bytes(1 << 16)):
                pass
        both = [ours.fileno()]
        assert wait(router, 0, readable=both, writable=both) == frozenset()
        theirs.send(b"!")
        assert wait(router, DEADLINE_S, readable=both, writable=both) == {ours.fileno()}


def test_wait_returns_for_a_descriptor_whose_other_end_is_closed(router: Router) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        assert wait(router, DEADLINE_S, readable=[ours.fileno()]) == {ours.fileno()}


@pytest.mark.parametrize("timeout_s", [0.01, 0.0, -1.0])
def test_wait_returns_after_the_timeout(router: Router, pipe: tuple[int, int], timeout_s: float) -> None:
    read_end, _ = pipe
    assert wait(router, timeout_s, readable=[read_end]) == frozenset()

"""The address rotation: which address is tried when, and what is said of those that failed."""

from __future__ import annotations

import math

import pytest

from birdie_zmq.protocol.address_rotation import AddressRotation, Connect, LookUp
from birdie_zmq.protocol.endpoints import TcpEndpoint

ONE, TWO, THREE = (TcpEndpoint(host, 5555) for host in ("[::1]", "127.0.0.1", "10.0.0.3"))


@pytest.fixture
def rotation() -> AddressRotation:
    """A rotation whose name is being looked up, at the time 0."""
    rotation = AddressRotation("gpu-7")
    assert rotation.tick(0.0) == [LookUp()]
    return rotation


def test_addresses_are_tried_in_order_until_one_answers(rotation: AddressRotation) -> None:
    assert rotation.looked_up([ONE, TWO, THREE], 0.0) == [Connect(ONE)]
    assert rotation.failed(0.1, "no connection") == [Connect(TWO)]
    rotation.accepted()
    rotation.established()
    assert rotation.address == TWO
    assert rotation.remaining_s(0.2) == math.inf
    assert rotation.tick(1e9) == []


def test_an_address_without_an_answer_is_given_up_after_half_a_second(rotation: AddressRotation) -> None:
    rotation.looked_up([ONE, TWO], 0.0)
    assert rotation.tick(0.4) == []
    assert rotation.remaining_s(0.4) == pytest.approx(0.1)
    assert rotation.tick(0.5) == [Connect(TWO)]


def test_an_accepted_connection_has_time_for_its_handshake(rotation: AddressRotation) -> None:
    rotation.looked_up([ONE, TWO], 0.0)
    rotation.accepted()
    assert rotation.tick(1.9) == []
    assert rotation.tick(2.0) == [Connect(TWO)]


def test_the_name_is_looked_up_again_before_each_pass(rotation: AddressRotation) -> None:
    rotation.looked_up([ONE, TWO], 0.0)
    rotation.failed(0.0, "no connection")
    assert rotation.failed(0.0, "no connection") == []
    assert rotation.tick(0.04) == []
    assert rotation.tick(0.05) == [LookUp()]
    assert rotation.looked_up([THREE], 0.1) == [Connect(THREE)]


def test_pauses_and_limits_double(rotation: AddressRotation) -> None:
    now = 0.0
    pauses, limits = [], []
    for _ in range(8):
        rotation.looked_up([ONE, TWO], now)
        limits.append(rotation.remaining_s(now))
        rotation.failed(now, "no connection")
        rotation.failed(now, "no connection")
        pauses.append(rotation.remaining_s(now))
        now += pauses[-1]
        assert rotation.tick(now) == [LookUp()]
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])
    assert limits == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0])


def test_the_only_address_stays_connected_while_libzmq_retries_it(rotation: AddressRotation) -> None:
    assert rotation.looked_up([ONE], 0.0) == [Connect(ONE)]
    assert rotation.failed(0.0, "no connection") == []
    assert rotation.tick(1.0) == [LookUp()]
    assert rotation.looked_up([ONE], 1.0) == []
    rotation.established()
    assert rotation.hint is None


def test_a_connection_that_is_established_during_a_lookup_is_kept(rotation: AddressRotation) -> None:
    rotation.looked_up([ONE], 0.0)
    rotation.failed(0.0, "no connection")
    assert rotation.tick(1.0) == [LookUp()]
    rotation.established()
    assert rotation.looked_up([TWO], 1.1) == []
    assert rotation.address == ONE


def test_the_end_of_a_connection_begins_a_new_pass(rotation: AddressRotation) -> None:
    rotation.looked_up([ONE, TWO], 0.0)
    rotation.failed(0.0, "no connection")
    rotation.established()
    assert rotation.failed(9.0, "connection closed") == []
    assert rotation.tick(9.05) == [LookUp()]
    assert rotation.looked_up([ONE, TWO], 9.05) == [Connect(ONE)]


def test_the_last_events_of_a_given_up_connection_are_recognised(rotation: AddressRotation) -> None:
    rotation.looked_up([ONE, TWO], 0.0)
    assert not rotation.is_given_up(str(ONE))
    rotation.failed(0.0, "no connection")
    assert rotation.is_given_up(str(ONE))
    assert not rotation.is_given_up(str(TWO))
    assert not rotation.is_given_up("tcp://[::ffff:127.0.0.1]:5555")


def test_the_hint_names_the_addresses_and_what_became_of_them(rotation: AddressRotation) -> None:
    assert rotation.hint == "the name gpu-7 does not resolve (it has not been looked up yet)"
    rotation.looked_up("Name or service not known", 0.0)
    assert rotation.hint == "the name gpu-7 does not resolve (Name or service not known)"
    rotation.tick(1.0)
    rotation.looked_up([ONE, TWO, THREE], 1.0)
    rotation.failed(1.0, "no connection")
    assert rotation.hint is not None
    assert rotation.hint.endswith("127.0.0.1:5555 (no answer yet), tcp://10.0.0.3:5555 (not tried yet)")
    rotation.tick(9.0)
    assert rotation.hint == (
        "addresses tried for gpu-7: tcp://[::1]:5555 (no connection), tcp://127.0.0.1:5555 (no answer), "
        "tcp://10.0.0.3:5555 (no answer yet)"
    )


def test_a_name_that_resolves_later_is_found(rotation: AddressRotation) -> None:
    assert rotation.looked_up("Name or service not known", 0.0) == []
    assert rotation.tick(0.05) == [LookUp()]
    assert rotation.looked_up([TWO], 0.1) == [Connect(TWO)]


def test_a_lookup_without_addresses_is_repeated(rotation: AddressRotation) -> None:
    assert rotation.looked_up([], 0.0) == []
    assert rotation.tick(0.05) == [LookUp()]

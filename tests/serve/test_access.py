"""What may be listened on, and where keys come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from birdie_zmq.errors import UsageError
from birdie_zmq.serve.access import KEY_VARIABLE, check_address, read_api_key

KEY = "0123456789abcdef"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_loopback_needs_neither_key_nor_tls(host: str) -> None:
    check_address(host, has_key=False, has_tls=False, allows_plain=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "example.org", "localhost.example.org"])
def test_other_addresses_need_a_key_and_tls(host: str) -> None:
    with pytest.raises(UsageError, match="API key"):
        check_address(host, has_key=False, has_tls=True, allows_plain=True)
    with pytest.raises(UsageError, match="needs TLS"):
        check_address(host, has_key=True, has_tls=False, allows_plain=False)
    check_address(host, has_key=True, has_tls=True, allows_plain=False)
    check_address(host, has_key=True, has_tls=False, allows_plain=True)


def key_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_key_comes_from_a_private_file_or_the_environment(tmp_path: Path) -> None:
    from_file = read_api_key(key_file(tmp_path, KEY.encode() + b"\n"), {})
    from_environment = read_api_key(None, {KEY_VARIABLE: KEY})

    assert from_file is not None
    assert from_file == from_environment
    assert from_file.matches(KEY)
    assert not from_file.matches(KEY + "0")
    assert KEY not in repr(from_file)
    assert read_api_key(None, {}) is None


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (KEY.encode(), 0o640, "chmod 600"),
        (KEY.encode(), 0o604, "chmod 600"),
        (b"short", 0o600, "at least 16"),
        (b"with a space in the middle", 0o600, "visible ASCII"),
        ("schlüssel-schlüssel".encode(), 0o600, "not ASCII"),
        (b"k" * 5000, 0o600, "more than 4,096 bytes"),
    ],
)
def test_a_key_file_that_others_read_or_that_holds_no_key_is_refused(
    tmp_path: Path, content: bytes, mode: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        read_api_key(key_file(tmp_path, content, mode), {})
    assert content.decode(errors="replace") not in refused.value.message


def test_two_keys_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="both set"):
        read_api_key(key_file(tmp_path, KEY.encode()), {KEY_VARIABLE: KEY})
    with pytest.raises(UsageError, match="not a regular file"):
        read_api_key(tmp_path, {})
    with pytest.raises(UsageError, match="No such file"):
        read_api_key(tmp_path / "none", {})

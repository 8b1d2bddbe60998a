"""Key files: their permissions, the files that are rejected, and the principals that a key folder allows."""

from __future__ import annotations

import os
import stat
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.cli import main as cli
from birdie_zmq.errors import NotAllowed, UsageError
from birdie_zmq.protocol.security.allow_list import AllowList
from birdie_zmq.protocol.security.keys import (
    default_folder,
    new_key,
    public_path,
    read_broker_pair,
    read_peer_key,
    read_principals,
    revoke_key,
)
from birdie_zmq.protocol.security.principals import Principal, Role

NAME_LETTERS = string.ascii_letters + string.digits + "._-"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def secret_of(path: Path) -> str:
    return read_peer_key(path).pair.secret


# --- Creation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files_and_folders_are_private(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        new_key(folder, "client", "alice")
        new_key(folder, "worker", "gpu1")
    finally:
        os.umask(before)
    made = [folder, *folder.rglob("*")]
    assert {mode_of(path) for path in made if path.is_dir()} == {0o700}
    assert {mode_of(path) for path in made if path.is_file()} == {0o600}
    assert not [path for path in made if path.name.startswith(".")]


def test_a_private_file_is_sufficient_on_another_machine(folder: Path, tmp_path: Path) -> None:
    private = new_key(folder, "client", "alice", tmp_path / "elsewhere")
    key = read_peer_key(private)
    assert key.broker == read_broker_pair(folder).public
    assert key.principal == Principal("client", "alice", key.pair.public)
    assert read_principals(folder) == ({key.pair.public: key.principal}, [])
    assert not (folder / "private").exists()


def test_the_brokers_key_pair_is_made_once_and_every_key_is_new(folder: Path) -> None:
    keys = [read_peer_key(new_key(folder, role, "same")) for role in ("client", "worker")]
    assert keys[0].broker == keys[1].broker
    assert len({keys[0].pair.secret, keys[1].pair.secret, read_broker_pair(folder).secret}) == 3


def test_a_key_is_never_overwritten(folder: Path, tmp_path: Path) -> None:
    private = new_key(folder, "client", "alice")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="birdie-zmq keys revoke client alice"):
        new_key(folder, "client", "alice")
    with pytest.raises(UsageError, match="never overwritten"):
        new_key(folder, "client", "bob", private)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="never overwritten"):
        new_key(folder, "client", "bob", link)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_failed_new_key_leaves_no_private_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_key(folder, "client", "alice")
    (folder / "workers").write_text("a file in place of the folder")
    with pytest.raises(UsageError, match="workers"):
        new_key(folder, "worker", "gpu1")
    assert not (folder / "private" / "worker-gpu1").exists()


@given(st.text(NAME_LETTERS, min_size=1, max_size=64).filter(lambda name: not name.startswith(".")))
def test_a_valid_name_is_a_file_in_its_folder(name: str) -> None:
    assert public_path(Path("/keys"), "worker", name) == Path("/keys/workers", name)


@given(
    st.one_of(
        st.text(max_size=80).filter(lambda name: not set(name) <= set(NAME_LETTERS)),
        st.text(NAME_LETTERS, min_size=65, max_size=80),
        st.text(NAME_LETTERS).map(lambda rest: f".{rest}"),
        st.sampled_from(["", "../alice", "a/b", "alice\n", "\0"]),
    )
)
def test_invalid_names_are_rejected(name: str) -> None:
    with pytest.raises(UsageError, match="is not a valid key name"):
        public_path(Path("/keys"), "client", name)


def test_the_default_folder_is_in_the_users_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/settings")
    assert default_folder() == Path("/settings/birdie-zmq/keys")
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", unusable)
        monkeypatch.setenv("HOME", "/home/me")
        assert default_folder() == Path("/home/me/.config/birdie-zmq/keys")


def test_a_user_without_a_home_has_no_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54_321)  # has no entry in the user database
    assert default_folder() is None


# --- Reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o440, 0o640, 0o604, 0o620, 0o601])
def test_a_private_file_accessible_to_others_is_rejected(folder: Path, mode: int) -> None:
    private = new_key(folder, "client", "alice")
    private.chmod(mode)
    with pytest.raises(UsageError) as raised:
        read_peer_key(private)
    assert f"mode {mode:04o}" in raised.value.message
    assert f"chmod 600 {private}" in raised.value.message


@pytest.mark.parametrize("mode", [0o440, 0o640])
def test_a_key_that_its_group_may_read_needs_an_option(folder: Path, tmp_path: Path, mode: int) -> None:
    private = new_key(folder, "client", "alice")
    private.chmod(mode)
    link = tmp_path / "link"
    link.symlink_to(private)
    with pytest.raises(UsageError) as raised:
        read_peer_key(link)
    for part in (
        "accessible to its group",
        "defaultMode 0400",
        "--allow-group-readable-keys (allow_group_readable_keys=true",
    ):
        assert part in raised.value.message
    assert read_peer_key(link, allow_group=True).principal.name == "alice"


@pytest.mark.parametrize("mode", [0o444, 0o644, 0o660, 0o650, 0o641, 0o404])
def test_a_key_that_the_group_may_write_or_others_read_is_rejected_with_the_option(folder: Path, mode: int) -> None:
    private = new_key(folder, "client", "alice")
    private.chmod(mode)
    with pytest.raises(UsageError, match=rf"accessible to other users \(mode {mode:04o}\)"):
        read_peer_key(private, allow_group=True)


def let_group_read(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o750 if path.is_dir() else 0o440)


def test_a_folder_that_its_group_may_read_needs_the_option(folder: Path) -> None:
    private = new_key(folder, "client", "alice")
    let_group_read(folder)
    with pytest.raises(UsageError, match="--allow-group-readable-keys"):
        AllowList(folder)
    allowed = AllowList(folder, allow_group=True)
    key = read_peer_key(private, allow_group=True).pair.public
    assert allowed.allows(key)
    folder.chmod(0o770)
    assert not allowed.allows(key)
    folder.chmod(0o750)
    assert allowed.allows(key)
    (folder / "clients" / "alice").chmod(0o444)
    assert not allowed.allows(key)


@pytest.mark.parametrize("mode", [0o770, 0o755, 0o751])
def test_a_folder_that_the_group_may_write_or_others_enter_is_rejected_with_the_option(folder: Path, mode: int) -> None:
    new_key(folder, "client", "alice")
    folder.chmod(mode)
    with pytest.raises(UsageError, match="accessible to other users"):
        AllowList(folder, allow_group=True)


def test_keys_of_a_folder_that_its_group_may_read_are_listed_with_the_option(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_key(folder, "client", "alice")
    let_group_read(folder)
    assert cli.main(["keys", "list", "--folder", str(folder)]) == 2
    assert "--allow-group-readable-keys" in capsys.readouterr().err
    assert cli.main(["keys", "list", "--folder", str(folder), "--allow-group-readable-keys"]) == 0
    assert "alice" in capsys.readouterr().out


@pytest.mark.parametrize("mode", [0o750, 0o701])
def test_a_folder_accessible_to_others_is_rejected(folder: Path, mode: int) -> None:
    new_key(folder, "client", "alice")
    folder.chmod(mode)
    for use in (lambda: AllowList(folder), lambda: new_key(folder, "client", "bob")):
        with pytest.raises(UsageError, match=f"chmod 700 {folder}"):
            use()


def test_a_folder_without_a_broker_key_is_rejected_with_the_command(folder: Path) -> None:
    with pytest.raises(UsageError, match="birdie-zmq keys new client NAME"):
        AllowList(folder)
    folder.mkdir(0o700)
    with pytest.raises(UsageError, match="birdie-zmq keys new client NAME"):
        AllowList(folder)


def test_a_file_of_another_kind_is_rejected(folder: Path, tmp_path: Path) -> None:
    private = new_key(folder, "client", "alice")
    for wrong in (folder / "broker", public_path(folder, "client", "alice"), tmp_path / "missing", folder):
        with pytest.raises(UsageError, match=wrong.name):
            read_peer_key(wrong)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UsageError, match="not a key file"):
        read_peer_key(tmp_path / "pipe")
    (folder / "broker").unlink()
    private.rename(folder / "broker")
    with pytest.raises(UsageError, match="broker"):
        read_broker_pair(folder)


CHANGES = {
    "another version": ("version 1", "version 2", "another version"),
    "no version": ("birdie-zmq key file", "key file", "not a birdie-zmq key file"),
    "a field more": ("role: client", "role: client\nmore: x", "fields"),
    "a field twice": ("role: client", "role: client\nrole: client", "fields"),
    "a field less": ("role: client\n", "", "fields"),
    "another role": ("role: client", "role: broker", "role"),
    "a wrong name": ("name: alice", "name: ../bob", "name"),
    "no text": ("name: alice", "name: \xff", "name"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_malformed_file_is_rejected_with_the_reason(folder: Path, change: str) -> None:
    old, new, message = CHANGES[change]
    private = new_key(folder, "client", "alice")
    private.write_text(private.read_text().replace(old, new), encoding="latin-1")
    with pytest.raises(UsageError, match=message) as raised:
        read_peer_key(private)
    assert str(private) in raised.value.message


def test_two_keys_that_are_not_a_pair_are_rejected(folder: Path) -> None:
    one, other = new_key(folder, "client", "alice"), new_key(folder, "client", "bob")
    one.write_text(one.read_text().replace(secret_of(one), secret_of(other)))
    with pytest.raises(UsageError, match="not a pair"):
        read_peer_key(one)


@given(st.data())
def test_no_error_shows_a_secret_key(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("broken") / "keys"
    private = new_key(folder, "client", "alice")
    secret, content = secret_of(private), bytearray(private.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    content[where : where + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    private.write_bytes(content)
    try:
        read_peer_key(private)
    except UsageError as error:
        output = f"{error}"
        assert not any(secret[i : i + 8] in output for i in range(len(secret) - 7))


def test_repr_shows_no_secret_key(folder: Path) -> None:
    key = read_peer_key(new_key(folder, "client", "alice"))
    assert key.pair.secret not in repr(key)
    assert read_broker_pair(folder).secret not in repr(AllowList(folder).pair)


# --- Allow list ------------------------------------------------------------------------------------------------------


def test_keys_can_be_added_and_revoked_while_a_broker_runs(folder: Path) -> None:
    alice = read_peer_key(new_key(folder, "client", "alice")).principal
    allowed = AllowList(folder)
    gpu = read_peer_key(new_key(folder, "worker", "gpu1")).principal
    assert allowed.allows(gpu.public)
    assert (allowed.principal(alice.public), allowed.principal(gpu.public)) == (alice, gpu)
    assert allowed.take_revoked() == frozenset()
    revoke_key(folder, "client", "alice")
    assert not allowed.allows(alice.public)
    with pytest.raises(NotAllowed, match="client 'alice' has been revoked"):
        allowed.principal(alice.public)
    assert allowed.take_revoked() == {alice}
    assert allowed.take_revoked() == frozenset()
    assert allowed.principal(gpu.public) == gpu


def test_a_new_key_with_an_old_name_does_not_allow_the_old_key(folder: Path) -> None:
    old = read_peer_key(new_key(folder, "client", "alice")).principal
    allowed = AllowList(folder)
    revoke_key(folder, "client", "alice")
    new = read_peer_key(new_key(folder, "client", "alice")).principal
    assert allowed.take_revoked() == {old}
    assert allowed.allows(new.public)
    assert not allowed.allows(old.public)


def test_no_key_or_an_unknown_key_has_no_principal(folder: Path) -> None:
    new_key(folder, "client", "alice")
    allowed = AllowList(folder)
    for key in (None, "0" * 40):
        with pytest.raises(NotAllowed):
            allowed.principal(key)


def moved(folder: Path) -> None:
    make_workers(folder)
    public_path(folder, "client", "alice").rename(public_path(folder, "worker", "alice"))


def renamed(folder: Path) -> None:
    public_path(folder, "client", "alice").rename(public_path(folder, "client", "bob"))


def opened(folder: Path) -> None:
    public_path(folder, "client", "alice").chmod(0o644)


def folder_opened(folder: Path) -> None:
    (folder / "clients").chmod(0o755)


def copied(folder: Path) -> None:
    path = public_path(folder, "worker", "copy")
    make_workers(folder)
    text = public_path(folder, "client", "alice").read_text()
    path.write_text(text.replace("role: client", "role: worker").replace("name: alice", "name: copy"))
    path.chmod(0o600)


def cut_off(folder: Path) -> None:
    path = public_path(folder, "client", "alice")
    path.write_text(path.read_text()[:-5])


def make_workers(folder: Path) -> None:
    (folder / "workers").mkdir(0o700, exist_ok=True)


@pytest.mark.parametrize("change", [moved, renamed, opened, folder_opened, copied, cut_off])
def test_a_changed_public_file_allows_no_key(folder: Path, change: object) -> None:
    assert callable(change)
    alice = read_peer_key(new_key(folder, "client", "alice")).principal
    new_key(folder, "worker", "gpu1")
    allowed = AllowList(folder)
    change(folder)
    assert not allowed.allows(alice.public)
    assert allowed.take_revoked() == {alice}
    with pytest.raises(UsageError):
        AllowList(folder)


def test_the_folder_is_not_read_again_unless_it_has_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = read_peer_key(new_key(folder, "client", "alice")).principal
    allowed = AllowList(folder)
    monkeypatch.setattr(
        "birdie_zmq.protocol.security.allow_list.read_principals",
        lambda folder: pytest.fail("the folder was read again"),
    )
    for _ in range(3):
        assert allowed.allows(alice.public)
        assert allowed.take_revoked() == frozenset()


# --- The command -----------------------------------------------------------------------------------------------------


def test_the_keys_command_makes_lists_and_revokes_keys_without_showing_secrets(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--folder", str(folder)]
    roles: tuple[Role, ...] = ("client", "worker")
    for role in roles:
        assert cli.main(["keys", "new", role, "one", *where]) == 0
    principals = read_principals(folder)[0].values()
    secrets = [secret_of(folder / "private" / f"{role}-one") for role in roles] + [read_broker_pair(folder).secret]
    assert cli.main(["keys", "list", *where]) == 0
    output = capsys.readouterr().out
    for principal in principals:
        (line,) = (line for line in output.splitlines() if principal.public in line)
        assert line.split() == [principal.role, "one", principal.public, "new"]
    assert cli.main(["keys", "revoke", "client", "one", *where]) == 0
    assert [principal.role for principal in read_principals(folder)[0].values()] == ["worker"]
    assert not (folder / "private" / "client-one").exists()
    assert cli.main(["keys", "revoke", "client", "one", *where]) == 2
    assert "there is no key of client 'one'" in (captured := capsys.readouterr()).err
    assert not any(secret in output + captured.out + captured.err for secret in secrets)

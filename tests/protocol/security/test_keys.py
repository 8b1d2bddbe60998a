"""Key files: who can read them, what is refused, and what a folder of them lets in."""

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
    read_holders,
    read_peer_key,
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


# --- Making ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files_and_folders_are_their_owners_alone(folder: Path, umask: int) -> None:
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


def test_a_private_file_has_all_that_another_machine_needs(folder: Path, tmp_path: Path) -> None:
    private = new_key(folder, "client", "alice", tmp_path / "elsewhere")
    key = read_peer_key(private)
    assert key.broker == read_broker_pair(folder).public
    assert key.holder == Principal("client", "alice", key.pair.public)
    assert read_holders(folder) == ({key.pair.public: key.holder}, [])
    assert not (folder / "private").exists()


def test_the_brokers_pair_is_made_once_and_every_key_is_another(folder: Path) -> None:
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


def test_a_key_that_cannot_be_let_in_leaves_no_private_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_key(folder, "client", "alice")
    (folder / "workers").write_text("in the way")
    with pytest.raises(UsageError, match="workers"):
        new_key(folder, "worker", "gpu1")
    assert not (folder / "private" / "worker-gpu1").exists()


@given(st.text(NAME_LETTERS, min_size=1, max_size=64).filter(lambda name: not name.startswith(".")))
def test_a_name_is_a_file_of_its_folder(name: str) -> None:
    assert public_path(Path("/keys"), "worker", name) == Path("/keys/workers", name)


@given(
    st.one_of(
        st.text(max_size=80).filter(lambda name: not set(name) <= set(NAME_LETTERS)),
        st.text(NAME_LETTERS, min_size=65, max_size=80),
        st.text(NAME_LETTERS).map(lambda rest: f".{rest}"),
        st.sampled_from(["", "../alice", "a/b", "alice\n", "\0"]),
    )
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a key"):
        public_path(Path("/keys"), "client", name)


def test_the_folder_is_among_the_users_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/settings")
    assert default_folder() == Path("/settings/birdie-zmq/keys")
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", unusable)
        monkeypatch.setenv("HOME", "/home/me")
        assert default_folder() == Path("/home/me/.config/birdie-zmq/keys")


# --- Reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_private_file_that_others_can_open_is_refused(folder: Path, mode: int) -> None:
    private = new_key(folder, "client", "alice")
    private.chmod(mode)
    with pytest.raises(UsageError) as refused:
        read_peer_key(private)
    assert f"mode {mode:04o}" in refused.value.message
    assert f"chmod 600 {private}" in refused.value.message


@pytest.mark.parametrize("mode", [0o750, 0o701])
def test_a_folder_that_others_can_enter_is_refused(folder: Path, mode: int) -> None:
    new_key(folder, "client", "alice")
    folder.chmod(mode)
    for use in (lambda: AllowList(folder), lambda: new_key(folder, "client", "bob")):
        with pytest.raises(UsageError, match=f"chmod 700 {folder}"):
            use()


def test_a_folder_without_a_brokers_key_is_refused_with_what_to_do(folder: Path) -> None:
    with pytest.raises(UsageError, match="birdie-zmq keys new client NAME"):
        AllowList(folder)
    folder.mkdir(0o700)
    with pytest.raises(UsageError, match="birdie-zmq keys new client NAME"):
        AllowList(folder)


def test_a_file_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    private = new_key(folder, "client", "alice")
    for wrong in (folder / "broker", public_path(folder, "client", "alice"), tmp_path / "missing", folder):
        with pytest.raises(UsageError, match=wrong.name):
            read_peer_key(wrong)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UsageError, match="no key file"):
        read_peer_key(tmp_path / "pipe")
    (folder / "broker").unlink()
    private.rename(folder / "broker")
    with pytest.raises(UsageError, match="broker"):
        read_broker_pair(folder)


CHANGES = {
    "another version": ("version 1", "version 2", "another version"),
    "no version": ("birdie-zmq key file", "key file", "no key file"),
    "a field more": ("role: client", "role: client\nmore: x", "fields"),
    "a field twice": ("role: client", "role: client\nrole: client", "fields"),
    "a field less": ("role: client\n", "", "fields"),
    "another role": ("role: client", "role: broker", "role"),
    "a wrong name": ("name: alice", "name: ../bob", "name"),
    "no text": ("name: alice", "name: \xff", "name"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_malformed_file_is_refused_for_what_is_wrong(folder: Path, change: str) -> None:
    old, new, words = CHANGES[change]
    private = new_key(folder, "client", "alice")
    private.write_text(private.read_text().replace(old, new), encoding="latin-1")
    with pytest.raises(UsageError, match=words) as refused:
        read_peer_key(private)
    assert str(private) in refused.value.message


def test_two_keys_that_are_no_pair_are_refused(folder: Path) -> None:
    one, other = new_key(folder, "client", "alice"), new_key(folder, "client", "bob")
    one.write_text(one.read_text().replace(secret_of(one), secret_of(other)))
    with pytest.raises(UsageError, match="not a pair"):
        read_peer_key(one)


@given(st.data())
def test_no_error_shows_what_a_file_holds(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("broken") / "keys"
    private = new_key(folder, "client", "alice")
    secret, content = secret_of(private), bytearray(private.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    content[where : where + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    private.write_bytes(content)
    try:
        read_peer_key(private)
    except UsageError as error:
        shown = f"{error}"
        assert not any(secret[i : i + 8] in shown for i in range(len(secret) - 7))


def test_no_key_is_shown_where_an_object_is_printed(folder: Path) -> None:
    key = read_peer_key(new_key(folder, "client", "alice"))
    assert key.pair.secret not in repr(key)
    assert read_broker_pair(folder).secret not in repr(AllowList(folder).pair)


# --- Who is let in ---------------------------------------------------------------------------------------------------


def test_keys_come_and_go_while_a_broker_runs(folder: Path) -> None:
    alice = read_peer_key(new_key(folder, "client", "alice")).holder
    allowed = AllowList(folder)
    gpu = read_peer_key(new_key(folder, "worker", "gpu1")).holder
    assert allowed.admits(gpu.public)
    assert (allowed.holder(alice.public), allowed.holder(gpu.public)) == (alice, gpu)
    assert allowed.take_revoked() == frozenset()
    revoke_key(folder, "client", "alice")
    assert not allowed.admits(alice.public)
    with pytest.raises(NotAllowed, match="client 'alice' has been revoked"):
        allowed.holder(alice.public)
    assert allowed.take_revoked() == {alice}
    assert allowed.take_revoked() == frozenset()
    assert allowed.holder(gpu.public) == gpu


def test_a_new_key_under_an_old_name_does_not_bring_the_old_one_back(folder: Path) -> None:
    old = read_peer_key(new_key(folder, "client", "alice")).holder
    allowed = AllowList(folder)
    revoke_key(folder, "client", "alice")
    new = read_peer_key(new_key(folder, "client", "alice")).holder
    assert allowed.take_revoked() == {old}
    assert allowed.admits(new.public)
    assert not allowed.admits(old.public)


def test_whoever_has_no_key_or_a_strange_one_is_nobody(folder: Path) -> None:
    new_key(folder, "client", "alice")
    allowed = AllowList(folder)
    for key in (None, "0" * 40):
        with pytest.raises(NotAllowed):
            allowed.holder(key)


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


@pytest.mark.parametrize("harm", [moved, renamed, opened, folder_opened, copied, cut_off])
def test_a_file_that_is_not_as_it_was_made_lets_nobody_in(folder: Path, harm: object) -> None:
    assert callable(harm)
    alice = read_peer_key(new_key(folder, "client", "alice")).holder
    new_key(folder, "worker", "gpu1")
    allowed = AllowList(folder)
    harm(folder)
    assert not allowed.admits(alice.public)
    assert allowed.take_revoked() == {alice}
    with pytest.raises(UsageError):
        AllowList(folder)


def test_the_folder_is_not_read_again_unless_it_has_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = read_peer_key(new_key(folder, "client", "alice")).holder
    allowed = AllowList(folder)
    monkeypatch.setattr(
        "birdie_zmq.protocol.security.allow_list.read_holders", lambda folder: pytest.fail("it was read")
    )
    for _ in range(3):
        assert allowed.admits(alice.public)
        assert allowed.take_revoked() == frozenset()


# --- The command -----------------------------------------------------------------------------------------------------


def test_the_command_makes_lists_and_revokes_and_shows_no_secret(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--folder", str(folder)]
    roles: tuple[Role, ...] = ("client", "worker")
    for role in roles:
        assert cli.main(["keys", "new", role, "one", *where]) == 0
    holders = read_holders(folder)[0].values()
    secrets = [secret_of(folder / "private" / f"{role}-one") for role in roles] + [read_broker_pair(folder).secret]
    assert cli.main(["keys", "list", *where]) == 0
    shown = capsys.readouterr().out
    for holder in holders:
        (line,) = (line for line in shown.splitlines() if holder.public in line)
        assert line.split() == [holder.role, "one", holder.public, "new"]
    assert cli.main(["keys", "revoke", "client", "one", *where]) == 0
    assert [holder.role for holder in read_holders(folder)[0].values()] == ["worker"]
    assert not (folder / "private" / "client-one").exists()
    assert cli.main(["keys", "revoke", "client", "one", *where]) == 2
    assert "there is no key of a client 'one'" in (heard := capsys.readouterr()).err
    assert not any(secret in shown + heard.out + heard.err for secret in secrets)

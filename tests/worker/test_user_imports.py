"""The imports of a user's file, from a directory whose files have the names of other modules."""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path

import pytest

from birdie_zmq.worker.user_imports import import_user_file

STRAY = "raise SystemExit('a stray file was imported')\n"
NAME = "birdie_zmq_imported_by_a_test"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)


@pytest.mark.parametrize("name", ["page", "api"])
def test_a_package_called_api_is_imported_as_in_a_script(tmp_path: Path, name: str) -> None:
    write(tmp_path / "api", __init__="NAME = 'mine'", weights="SCALE = 2.0")
    write(tmp_path, **{name: "from api.weights import SCALE\nimport api\nNAME = api.NAME\n"})

    module = import_user_file(tmp_path / f"{name}.py", NAME)

    assert (module.NAME, module.SCALE) == ("mine", 2.0)


def test_the_file_imported_by_its_own_name_is_the_same_module(tmp_path: Path) -> None:
    write(tmp_path, helper="def name():\n    from page import NAME\n    return NAME")
    write(tmp_path, page="import helper\nNAME = []\nclass Thing: ...\n")

    module = import_user_file(tmp_path / "page.py", NAME)

    assert module.helper.name() is module.NAME
    assert importlib.import_module("page") is module
    assert module.__spec__ is not None
    assert module.__spec__.name == module.__name__ == NAME
    assert type(pickle.loads(pickle.dumps(module.Thing()))) is module.Thing


def test_the_file_hides_no_package_of_its_own_name(tmp_path: Path) -> None:
    write(tmp_path / "site", plankton="OTHER = 1")
    write(tmp_path / "mine", plankton="import plankton\nOTHER = plankton.OTHER\n")
    sys.path.insert(0, str(tmp_path / "site"))

    assert import_user_file(tmp_path / "mine" / "plankton.py", NAME).OTHER == 1


def test_a_file_does_not_hide_a_module_that_the_process_imports_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["json", "queue", "tokenizers", "jinja2", "safetensors"]
    write(tmp_path, page="", **dict.fromkeys(names, STRAY))
    for name in names:
        for loaded in [other for other in sys.modules if other == name or other.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, loaded)

    import_user_file(tmp_path / "page.py", NAME)

    for name in names:
        assert not str(importlib.import_module(name).__file__).startswith(str(tmp_path))


def test_the_file_may_import_its_own_module_instead_of_one_of_the_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, page="import profile\nOWN = profile.OWN\n", profile="OWN = 1\n")
    monkeypatch.delitem(sys.modules, "profile", raising=False)

    assert import_user_file(tmp_path / "page.py", NAME).OWN == 1


def test_an_installed_module_that_this_package_does_not_need_is_hidden(tmp_path: Path) -> None:
    write(tmp_path / "site", utils=STRAY)
    write(tmp_path / "mine", page="import utils\nOWN = utils.OWN\n", utils="OWN = 1\n")
    sys.path.insert(0, str(tmp_path / "site"))

    assert import_user_file(tmp_path / "mine" / "page.py", NAME).OWN == 1


def test_a_folder_without_init_hides_nothing(tmp_path: Path) -> None:
    write(tmp_path / "jinja2", stray=STRAY)
    write(tmp_path / "parts", one="ONE = 1")
    write(tmp_path, page="import jinja2\nimport parts.one\n")

    module = import_user_file(tmp_path / "page.py", NAME)

    assert module.parts.one.ONE == 1
    assert module.jinja2.__file__ is not None


def test_a_virtual_environment_in_the_directory_does_not_belong_to_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / ".venv" / "lib" / "site-packages"
    write(packages, installed="import profile\nrun = profile.run\n")
    write(tmp_path, page="import installed\n", profile=STRAY)
    monkeypatch.delitem(sys.modules, "profile", raising=False)
    sys.path.append(str(packages))

    assert import_user_file(tmp_path / "page.py", NAME).installed.run

"""Outdated versions, and metadata that do not match the running code."""

from __future__ import annotations

from pathlib import Path

import pytest

from birdie_zmq.tools.doctor import packages
from birdie_zmq.tools.doctor.finding import Finding


def install(folder: Path, *lines: str, version: str = "0.1.0") -> None:
    """Write metadata of birdie-zmq, as pip does."""
    info = folder / f"birdie_zmq-{version}.dist-info"
    info.mkdir()
    text = "\n".join(["Metadata-Version: 2.1", "Name: birdie-zmq", f"Version: {version}", *lines, ""])
    (info / "METADATA").write_text(text)


def found(name: str, findings: list[Finding]) -> Finding:
    (one,) = (finding for finding in findings if finding.name == name)
    return one


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_installed_packages_meet_the_requirements() -> None:
    findings = packages.check("3.11.2", "0.1.0")

    assert [finding.level for finding in findings if finding.name in ("python", "packages", "lm_eval")] == ["ok"] * 3


def test_outdated_package_names_the_install_command(folder: Path) -> None:
    install(folder, "Requires-Dist: msgpack>=999", "Requires-Dist: numpy>=2.0")

    one = found("packages", packages.check("3.11.2", "0.1.0"))

    assert one.level == "wrong"
    assert one.text.startswith("msgpack is ")
    assert one.fix == "pip install 'msgpack>=999'"


def test_missing_requirement_is_named(folder: Path) -> None:
    install(folder, "Requires-Dist: birdie-zmq-needs-this>=1", 'Requires-Dist: nor-this; extra == "cuda"')

    one = found("packages", packages.check("3.11.2", "0.1.0"))

    assert (one.level, one.text) == ("wrong", "birdie-zmq-needs-this is not installed")
    assert one.fix == "pip install 'birdie-zmq-needs-this>=1'"


def test_wrong_lm_eval_version_is_a_separate_finding(folder: Path) -> None:
    install(folder, "Requires-Dist: lm-eval==0.0.1")

    one = found("lm_eval", packages.check("3.11.2", "0.1.0"))

    assert (one.level, one.fix) == ("wrong", "pip install lm-eval==0.0.1")


def test_python_version_is_checked_against_the_metadata(folder: Path) -> None:
    install(folder, "Requires-Python: >=3.12")

    assert found("python", packages.check("3.12.0", "0.1.0")).level == "ok"
    one = found("python", packages.check("3.11.2", "0.1.0"))
    assert one.level == "wrong"
    assert "python3.12 -m venv" in one.fix


def test_metadata_of_another_version_is_a_warning(folder: Path) -> None:
    install(folder, version="0.0.1")

    one = found("birdie-zmq", packages.check("3.11.2", "0.1.0"))

    assert (one.level, one.text) == ("warning", "version 0.1.0 runs, but version 0.0.1 is installed")
    assert "pip install" in one.fix


def test_uninstalled_checkout_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])

    first, second = packages.check("3.11.2", "0.1.0")

    assert (first.level, second.level) == ("warning", "ok")
    assert first.fix.startswith("pip install .")

"""The supported versions of lm_eval: the check at start, and the requirement of the package."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from birdie_zmq.errors import UsageError
from birdie_zmq.harness.lm_eval_version import NEWEST, OLDEST, check_version

ROOT = Path(__file__).resolve().parents[2]
SUPPORTED = ["0.4.12", "0.4.13", "0.5.0.dev1"]
UNSUPPORTED = ["0.4.11", "0.5.0.dev2", "0.5.0", "0.6.0", "1.0", "unknown"]


@pytest.mark.parametrize("version", SUPPORTED)
def test_a_supported_version_is_accepted(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", UNSUPPORTED)
def test_another_version_is_an_error_that_names_both(version: str) -> None:
    with pytest.raises(UsageError, match=rf"lm_eval {version} is not supported.* {OLDEST} to {NEWEST}\."):
        check_version(version)


def test_the_installed_version_is_supported() -> None:
    check_version()


def test_the_requirement_of_the_package_allows_the_supported_versions_and_installs_no_pre_release() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [line for line in config["options"]["install_requires"].splitlines() if line.startswith("lm-eval")]
    (required,) = map(Requirement, lines)

    assert all(required.specifier.contains(version, prereleases=True) for version in SUPPORTED)
    assert not required.specifier.contains("0.4.11")
    assert not required.specifier.contains("0.5.0")
    assert not required.specifier.prereleases  # otherwise pip would prefer the pre-release to a release

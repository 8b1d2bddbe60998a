"""docs/reference/features.md and docs/explanation/faults.md name tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT

_NAMED = re.compile(r"`(?P<path>[\w/]*test_\w+\.py|[a-z]+/)(?:::(?P<test>\w+)[^`]*)?`")


def named(page: Path) -> list[tuple[str, str | None]]:
    """The files and folders of tests that the last column of a table names, and the test's name if it has one."""
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [(match["path"].removeprefix("tests/"), match["test"]) for row in rows for match in _NAMED.finditer(row)]


@pytest.mark.parametrize("name", ["reference/features.md", "explanation/faults.md"])
def test_every_test_that_a_page_names_is_there(name: str) -> None:
    found = named(ROOT / "docs" / name)
    tests = ROOT / "tests"

    assert len(found) > 10
    for path, test in found:
        files = [tests / path] if (tests / path).exists() else list(tests.rglob(path))
        assert files, path
        assert test is None or f"def {test}" in files[0].read_text(encoding="utf-8"), f"{path}::{test}"

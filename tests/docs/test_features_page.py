"""docs/reference/features.md and docs/explanation/faults.md name only tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT

_NAMED = re.compile(r"`(?P<path>[\w/]*test_\w+\.py|[a-z]+/)(?:::(?P<test>\w+)[^`]*)?`")


def named_tests(page: Path) -> list[tuple[str, str | None]]:
    """Return the test files and folders that the rows of the tables name, each with the name of a test or None."""
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [(match["path"].removeprefix("tests/"), match["test"]) for row in rows for match in _NAMED.finditer(row)]


@pytest.mark.parametrize("name", ["reference/features.md", "explanation/faults.md"])
def test_every_test_named_on_a_page_exists(name: str) -> None:
    references = named_tests(ROOT / "docs" / name)
    tests = ROOT / "tests"

    assert len(references) > 10
    for path, test in references:
        files = [tests / path] if (tests / path).exists() else list(tests.rglob(path))
        assert files, path
        assert test is None or f"def {test}" in files[0].read_text(encoding="utf-8"), f"{path}::{test}"

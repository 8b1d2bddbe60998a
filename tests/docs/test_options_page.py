"""docs/reference/options.md says what the code says, and of all of it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from birdie_zmq import models
from birdie_zmq.cli import main
from birdie_zmq.harness.model_args import MODEL_ARGS
from docs.generate import options_page

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_page_is_as_the_code_says() -> None:
    cure = "it is made anew by: python -m docs.generate.options_page"
    assert options_page.PAGE.read_text(encoding="utf-8") == options_page.page(), cure


def test_every_command_is_on_the_page() -> None:
    headings = "\n".join(line for line in options_page.page().splitlines() if line.startswith(("## ", "`")))

    assert [name for name in main.COMMANDS if f"`birdie-zmq {name}" not in headings] == []


def test_every_variable_of_our_own_is_on_the_page() -> None:
    """Other than those of tests and benchmarks, which CONTRIBUTING.md has."""
    found: set[str] = set()
    for path in [*(ROOT / "birdie_zmq").rglob("*.py"), ROOT / "lm_eval_hook" / "_birdie_zmq_hook.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.update(re.findall(r"\bBIRDIE_[A-Z_]+", node.value))

    assert found
    assert {name for name in found if f"| `{name}` |" not in options_page.page()} == set()


def test_the_built_in_page_lets_through_what_the_engine_reads() -> None:
    """But for the mesh, which is a parameter of its own, and of load_model alone."""
    assert {word.name for word in MODEL_ARGS if word.passed_on} == {*models._ENGINE, "mesh"}

"""docs/reference/options.md is complete and up to date with the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from birdie_zmq import models
from birdie_zmq.cli import main
from birdie_zmq.harness.model_args import MODEL_ARGS
from docs.generate import options_page

ROOT = Path(__file__).resolve().parent.parent.parent


def test_options_page_is_up_to_date() -> None:
    fix = "regenerate it with: python -m docs.generate.options_page"
    assert options_page.PAGE.read_text(encoding="utf-8") == options_page.page(), fix


def test_every_command_is_on_the_page() -> None:
    headings = "\n".join(line for line in options_page.page().splitlines() if line.startswith(("## ", "`")))

    assert [name for name in main.COMMANDS if f"`birdie-zmq {name}" not in headings] == []


def test_every_environment_variable_is_on_the_page() -> None:
    """The variables of tests and benchmarks are in CONTRIBUTING.md instead."""
    found: set[str] = set()
    for path in [*(ROOT / "birdie_zmq").rglob("*.py"), ROOT / "lm_eval_hook" / "_birdie_zmq_hook.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.update(re.findall(r"\bBIRDIE_[A-Z_]+", node.value))

    assert found
    assert {name for name in found if f"| `{name}` |" not in options_page.page()} == set()


def test_built_in_models_forward_all_engine_arguments() -> None:
    """The only exception is ``mesh``, which is a separate parameter that only ``load_model`` has."""
    assert {argument.name for argument in MODEL_ARGS if argument.forwarded} == {*models._ENGINE_ARGS, "mesh"}

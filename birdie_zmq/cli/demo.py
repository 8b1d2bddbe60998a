"""The command ``birdie-zmq demo``: evaluate the demo model on its own tasks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from birdie_zmq.cli import lm_eval
from birdie_zmq.cli.common import PACKAGE
from birdie_zmq.errors import UsageError


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the argument parser of the command, which passes all arguments but --help on to lm_eval."""
    return argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [-h] [ARGUMENT OF LM_EVAL ...]",
        description="Evaluate the demo model on its three tasks. All other arguments are passed on to lm_eval.",
        allow_abbrev=False,
    )


def main(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq demo") -> int:
    """Evaluate the demo model on its three tasks, with an embedded broker and worker."""
    _, rest = parser(prog).parse_known_args(arguments)
    tasks = _demo_tasks()
    names = ",".join(sorted(path.stem for path in tasks.glob("demo_*.yaml")))
    run = ["--model", "birdie_zmq", "--model_args", "model_tag=demo", "--include_path", str(tasks), "--tasks", names]
    return lm_eval.main([*run, *rest])


def _demo_tasks() -> Path:
    """Return the folder of the demo's tasks, in a checkout or in the installed package."""
    for folder in (PACKAGE.parent / "examples" / "tasks", PACKAGE / "demo_tasks"):
        if folder.is_dir():
            return folder
    raise UsageError(f"the tasks of the demo are missing from {PACKAGE}; reinstall birdie-zmq")

"""Build steps that setup.cfg cannot say: the .pth file that tells lm_eval of us, and the demo's tasks.

setup.cfg names both classes under ``cmdclass``. They are used while building and are not installed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
PTH = "birdie_zmq_lm_eval.pth"


class BuildPy(build_py):
    """Copies the .pth file to the top of what is installed, and the demo's tasks into the package."""

    def run(self) -> None:
        """Build as ever, then copy."""
        super().run()
        if self.editable_mode:
            return  # The wheel of an editable install is written by EditableWheel, and the tasks are in the checkout.
        target = Path(self.build_lib)
        shutil.copyfile(ROOT / PTH, target / PTH)
        shutil.copytree(ROOT / "examples" / "tasks", target / "birdie_zmq" / "demo_tasks", dirs_exist_ok=True)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Name what was copied too, so that it is recorded and uninstalled."""
        target = Path(self.build_lib)
        tasks = [path for path in (ROOT / "examples" / "tasks").rglob("*") if path.is_file()]
        copied = [
            target / "birdie_zmq" / "demo_tasks" / path.relative_to(ROOT / "examples" / "tasks") for path in tasks
        ]
        outputs: list[str] = super().get_outputs(include_bytecode)
        return [*outputs, str(target / PTH), *map(str, copied)]


class EditableWheel(editable_wheel):
    """Puts the .pth file into the wheel of an editable install, beside the one that setuptools makes."""

    def _select_strategy(self, *arguments: Any) -> Any:
        strategy = super()._select_strategy(*arguments)  # type: ignore[misc]  # the stubs lack it
        original = strategy.__call__

        class WithPth:
            """Setuptools' strategy, which also writes our .pth file."""

            def __enter__(self) -> Any:
                return strategy.__enter__()

            def __exit__(self, *details: Any) -> Any:
                return strategy.__exit__(*details)

            def __call__(self, wheel: Any, files: Any, mapping: Any) -> None:
                original(wheel, files, mapping)
                wheel.writestr(PTH, (ROOT / PTH).read_bytes())

        return WithPth()

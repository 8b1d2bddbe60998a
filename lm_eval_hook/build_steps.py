"""Build steps that setup.cfg cannot express: install the lm_eval hook and the tasks of the demo.

setup.cfg lists both classes under ``cmdclass``. They run when a wheel is built, and they are not installed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

HERE = Path(__file__).resolve().parent
TASKS = HERE.parent / "examples" / "tasks"
HOOK = ("birdie_zmq_lm_eval.pth", "_birdie_zmq_hook.py")
"""The files of the hook; they are installed at the top of site-packages, where Python reads .pth files."""


class BuildPy(build_py):
    """A build step that copies the hook to the top of the wheel, and the demo's tasks into the package."""

    def run(self) -> None:
        """Run the step of setuptools in an empty folder, then copy the files."""
        if self.editable_mode:
            super().run()
            return  # EditableWheel adds the hook to an editable install, and the tasks are in the checkout.
        target = Path(self.build_lib)
        # pip builds in the checkout and leaves this folder. The next version would be mixed with it: setuptools keeps files
        # that the new version lacks, and files that are newer than their sources.
        shutil.rmtree(target, ignore_errors=True)
        super().run()
        for name in HOOK:
            shutil.copyfile(HERE / name, target / name)
        shutil.copytree(TASKS, target / "birdie_zmq" / "demo_tasks", dirs_exist_ok=True)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the outputs including the copied files, so that they are recorded and uninstalled."""
        if self.editable_mode:
            editable: list[str] = super().get_outputs(include_bytecode)
            return editable
        target = Path(self.build_lib)
        tasks = [path.relative_to(TASKS) for path in TASKS.rglob("*") if path.is_file()]
        copied = [target / "birdie_zmq" / "demo_tasks" / path for path in tasks]
        outputs: list[str] = super().get_outputs(include_bytecode)
        return [*outputs, *(str(target / name) for name in HOOK), *map(str, copied)]


class EditableWheel(editable_wheel):
    """A build step that adds the hook to the wheel of an editable install, next to the .pth file of setuptools."""

    def _select_strategy(self, *arguments: Any) -> Any:
        strategy = super()._select_strategy(*arguments)  # type: ignore[misc]  # missing in the stubs
        original = strategy.__call__

        class WithHook:
            """The strategy of setuptools that also writes the files of the hook."""

            def __enter__(self) -> Any:
                return strategy.__enter__()

            def __exit__(self, *details: Any) -> Any:
                return strategy.__exit__(*details)

            def __call__(self, wheel: Any, files: Any, mapping: Any) -> None:
                original(wheel, files, mapping)
                for name in HOOK:
                    wheel.writestr(name, (HERE / name).read_bytes())

        return WithHook()

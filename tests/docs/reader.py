"""A reader with a machine of their own: birdie-zmq installed from a copy of the checkout, and a terminal in it.

Nothing of what a page does reaches the checkout, the reader's real home, or the environment of the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.docs.as_typed import ready_mark, starts_broker, substituted, without_comment
from tests.docs.markdown import ROOT, Block

COMMAND_S = 240.0
READY_S = 90.0
END_S = 30.0

LM_EVAL = """#!{python}
import sys
from lm_eval.__main__ import cli_evaluate
sys.exit(cli_evaluate())
"""
"""As pip writes it."""

MY_PACKAGE = '''"""Stands for the package of README.md's page: a restored model that knows nothing."""
import jax.numpy as jnp

def restore(path, size):
    return jnp.ones((1024, 4))

def apply(params, tokens):
    return params[tokens] @ params.T
'''


def free_ports(count: int) -> list[int]:
    """Ports that are free now, and most likely stay so until they are used."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Machine:
    """What is made once: the copy of the checkout, the installation, and the checkpoints.

    Args:
        folder: Where all of it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkout = folder / "checkout"
        self.port, self.status_port, self.coordinator_port = free_ports(3)
        self._copy_checkout()
        self.bin = self._install()
        self.checkpoints = folder / "checkpoints"
        demo = self.checkout / "birdie_zmq" / "models" / "demo"
        for name in ("Qwen3-8B", "SmolLM2-135M", "mine"):
            shutil.copytree(demo, self.checkpoints / name)

    def _copy_checkout(self) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.checkout / name)
        # The default ports are those of the docs, and may be in use on this machine.
        for name, line, port in (
            ("birdie_zmq/protocol/endpoints.py", "DEFAULT_PORT = 5555", self.port),
            ("birdie_zmq/settings.py", "DEFAULT_STATUS_PORT = 5556", self.status_port),
        ):
            text = (self.checkout / name).read_text("utf-8")
            assert text.count(line) == 1
            (self.checkout / name).write_text(text.replace(line, f"{line.partition('=')[0]}= {port}"), "utf-8")

    def _install(self) -> Path:
        """An environment that has what this one has, and birdie-zmq from the copy; its folder of commands."""
        venv = self.folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=120)
        (packages,) = (venv / "lib").glob("python*/site-packages")
        paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        # A .pth file among those is not read, so what is installed for the tests does not stand in for the copy.
        (packages / "of_the_tests.pth").write_text("\n".join(sorted(paths)) + "\n")
        python = venv / "bin" / "python"
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(self.checkout)]
        subprocess.run(command, check=True, timeout=COMMAND_S, cwd=self.folder, env=without_python_path())
        script = venv / "bin" / "lm_eval"
        script.write_text(LM_EVAL.format(python=python))
        script.chmod(0o755)
        return venv / "bin"

    def processes(self) -> list[psutil.Process]:
        """All that run from here."""
        found = []
        for process in psutil.process_iter():
            try:
                line = process.cmdline()
            except psutil.Error:
                continue
            if any(str(self.folder) in word for word in line) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found


def without_python_path() -> dict[str, str]:
    """This environment, less what would put another checkout before the copy."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}


@dataclass
class Running:
    """A command that goes on."""

    command: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text("utf-8", "replace")


@dataclass
class Reader:
    """Somebody who types what a page says, in a fresh copy of the checkout.

    Attributes:
        machine: Theirs.
        folder: The copy.
    """

    machine: Machine
    folder: Path
    _running: list[Running] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        shutil.copytree(self.machine.checkout, self.folder)
        (self.folder / "my_package.py").write_text(MY_PACKAGE)
        self.home = self.folder.with_name(f"{self.folder.name}.home")
        self.home.mkdir()
        settings = Path.home() / ".config" / "pip"
        if settings.is_dir():  # Which index pip asks is the machine's to say.
            shutil.copytree(settings, self.home / ".config" / "pip")

    @property
    def places(self) -> dict[str, str]:
        """What the names of the substitutions stand for."""
        return {
            "port": str(self.machine.port),
            "status_port": str(self.machine.status_port),
            "coordinator_port": str(self.machine.coordinator_port),
            "checkpoints": str(self.machine.checkpoints),
            "keys": str(self.home / ".config" / "birdie-zmq" / "keys" / "private"),
            "folder": str(self.folder),
        }

    def save(self, block: Block) -> None:
        """Write a block to the file that its title names."""
        match = re.fullmatch(r'title="([\w.]+)"', block.rest)
        assert match is not None, f"{block.where}: what does {block.rest!r} mean?"
        (self.folder / match[1]).write_text(substituted(block.text, self.places), "utf-8")

    def type(self, where: str, command: str) -> str:
        """Run a command as it stands on a page; its output, or what it had written when it was ready if it goes on."""
        mark = ready_mark(command)
        if starts_broker(command):
            self.end()
        words = substituted(without_comment(command), self.places)
        self._count += 1
        log = self.folder.with_name(f"{self.folder.name}.{self._count}.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", f"exec {words}" if mark else words],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running = Running(words, process, log)
        self._running.append(running)
        deadline = time.monotonic() + (READY_S if mark else COMMAND_S)
        while process.poll() is None and not (mark and mark.search(running.output)):
            assert time.monotonic() < deadline, f"{where}: not done in time: {words}\n{running.output}"
            time.sleep(0.05)
        status = process.poll()
        if mark is None:
            self._running.remove(running)
            assert status == 0, f"{where}: ended with {status}: {words}\n{running.output}"
        else:
            assert status is None, f"{where}: it should go on, and ended with {status}: {words}\n{running.output}"
        return running.output

    def _environment(self) -> dict[str, str]:
        return {
            **without_python_path(),
            "PATH": f"{self.machine.bin}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.home),
            "PYTHONUNBUFFERED": "1",
            "JAX_PLATFORMS": "cpu",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "120",
        }

    def end(self) -> None:
        """End what goes on, the last first, and see that all of it was still there and nothing is left."""
        ended_before = [each for each in self._running if each.process.poll() is not None]
        for each in reversed(self._running):
            if each.process.poll() is None:
                os.killpg(each.process.pid, signal.SIGTERM)
                try:
                    each.process.wait(END_S)
                except subprocess.TimeoutExpired:
                    os.killpg(each.process.pid, signal.SIGKILL)
                    each.process.wait()
        self._running.clear()
        deadline = time.monotonic() + END_S
        while (left := self.machine.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in left:
            process.kill()
        assert not left, f"left behind: {left}"
        assert not ended_before, "\n".join(f"{each.command} ended by itself:\n{each.output}" for each in ended_before)

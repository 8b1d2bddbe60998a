"""A simulated reader who runs the commands of a page against birdie-zmq, installed from a copy of the checkout.

The commands of a page cannot change the checkout, the real home directory, or the environment of the tests.
"""

from __future__ import annotations

import json
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

import numpy as np
import psutil
from safetensors.numpy import save_file

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
"""The script that pip installs as ``lm_eval``."""

MY_PACKAGE = '''"""Replaces the package that the api.py in README.md imports: a model with constant weights."""
import jax.numpy as jnp

def restore(path, size):
    return jnp.ones((1024, 4))

def apply(params, tokens):
    return params[tokens] @ params.T
'''


def free_ports(count: int) -> list[int]:
    """Return ports that are free now; another process is unlikely to take them before they are used."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Machine:
    """The environment that all readers share: a copy of the checkout, its installation, and checkpoints.

    Args:
        folder: The parent folder of all three.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkout = folder / "checkout"
        self.port, self.status_port, self.coordinator_port, self.serve_port = free_ports(4)
        self._copy_checkout()
        self.bin = self._install()
        self.checkpoints = folder / "checkpoints"
        demo = self.checkout / "birdie_zmq" / "models" / "demo"
        for name in ("Qwen3-8B", "SmolLM2-135M", "mine"):
            shutil.copytree(demo, self.checkpoints / name)
        write_adapter(self.checkpoints / "tuned")

    def _copy_checkout(self) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.checkout / name)
        # The documentation uses the default ports, which may be in use on this machine.
        for name, line, port in (
            ("birdie_zmq/protocol/endpoints.py", "DEFAULT_PORT = 5555", self.port),
            ("birdie_zmq/settings.py", "DEFAULT_STATUS_PORT = 5556", self.status_port),
        ):
            text = (self.checkout / name).read_text("utf-8")
            assert text.count(line) == 1
            (self.checkout / name).write_text(text.replace(line, f"{line.partition('=')[0]}= {port}"), "utf-8")

    def _install(self) -> Path:
        """Create an environment with the packages of this one and birdie-zmq from the copy; return its folder of commands."""
        venv = self.folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=120)
        (packages,) = (venv / "lib").glob("python*/site-packages")
        paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        # Python reads no .pth files in these paths, so an editable installation of the tests cannot hide the copy.
        (packages / "of_the_tests.pth").write_text("\n".join(sorted(paths)) + "\n")
        python = venv / "bin" / "python"
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(self.checkout)]
        subprocess.run(command, check=True, timeout=COMMAND_S, cwd=self.folder, env=without_python_path())
        script = venv / "bin" / "lm_eval"
        script.write_text(LM_EVAL.format(python=python))
        script.chmod(0o755)
        return venv / "bin"

    def processes(self) -> list[psutil.Process]:
        """Return all processes that were started from this folder."""
        found = []
        for process in psutil.process_iter():
            try:
                arguments = process.cmdline()
            except psutil.Error:
                continue
            if any(str(self.folder) in argument for argument in arguments) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found


def without_python_path() -> dict[str, str]:
    """Return this environment without the variables that would make another checkout importable before the copy."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}


@dataclass
class RunningCommand:
    """A command that keeps running, such as a broker."""

    command: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text("utf-8", "replace")


@dataclass
class Reader:
    """Runs the commands of a page in a fresh copy of the checkout.

    Attributes:
        machine: The shared installation.
        folder: The copy of the checkout for this reader.
    """

    machine: Machine
    folder: Path
    _running: list[RunningCommand] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        shutil.copytree(self.machine.checkout, self.folder)
        (self.folder / "my_package.py").write_text(MY_PACKAGE)
        self.home = self.folder.with_name(f"{self.folder.name}.home")
        self.home.mkdir()
        settings = Path.home() / ".config" / "pip"
        if settings.is_dir():  # pip must use the package index that this machine has configured.
            shutil.copytree(settings, self.home / ".config" / "pip")

    @property
    def substitution_values(self) -> dict[str, str]:
        """The values of the names in the substitutions."""
        return {
            "port": str(self.machine.port),
            "status_port": str(self.machine.status_port),
            "coordinator_port": str(self.machine.coordinator_port),
            "serve_port": str(self.machine.serve_port),
            "checkpoints": str(self.machine.checkpoints),
            "keys": str(self.home / ".config" / "birdie-zmq" / "keys" / "private"),
            "folder": str(self.folder),
        }

    def save(self, block: Block) -> None:
        """Save a block to the file named in its title."""
        match = re.fullmatch(r'title="([\w.]+)"', block.rest)
        assert match is not None, f"{block.where}: unknown attribute {block.rest!r} of a block"
        (self.folder / match[1]).write_text(substituted(block.text, self.substitution_values), "utf-8")

    def type(self, where: str, command: str) -> str:
        """Run a command of a page and return its output; for a command that keeps running, the output until it was ready."""
        mark = ready_mark(command)
        if starts_broker(command):
            self.end()
        shell_command = substituted(without_comment(command), self.substitution_values)
        self._count += 1
        log = self.folder.with_name(f"{self.folder.name}.{self._count}.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", f"exec {shell_command}" if mark else shell_command],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running = RunningCommand(shell_command, process, log)
        self._running.append(running)
        deadline = time.monotonic() + (READY_S if mark else COMMAND_S)
        while process.poll() is None and not (mark and mark.search(running.output)):
            assert time.monotonic() < deadline, f"{where}: not done in time: {shell_command}\n{running.output}"
            time.sleep(0.05)
        status = process.poll()
        if mark is None:
            self._running.remove(running)
            assert status == 0, f"{where}: exited with status {status}: {shell_command}\n{running.output}"
        else:
            assert status is None, (
                f"{where}: expected to keep running, but exited with status {status}: {shell_command}\n{running.output}"
            )
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
        """Stop the running commands, the newest first; fail if one had exited before or a process is left."""
        exited_early = [each for each in self._running if each.process.poll() is not None]
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
        assert not exited_early, "\n".join(f"{each.command} exited early:\n{each.output}" for each in exited_early)


def write_adapter(directory: Path) -> None:
    """Write a LoRA adapter for the demo."""
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    directory.mkdir()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    width = 128
    matrices = {"A": np.full((1, width), 0.01, np.float32), "B": np.full((width, 1), 0.01, np.float32)}
    save_file(
        {f"{module}.lora_{part}.weight": matrix for part, matrix in matrices.items()},
        directory / "adapter_model.safetensors",
    )

"""Frameworks that hang, crash or see no GPU, each probed in a child process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from birdie_zmq.tools.doctor import devices
from birdie_zmq.tools.doctor.finding import Finding

SEES_THE_CPU = """
__version__ = "0.0"
class Device:
    platform = device_kind = "cpu"
    def __str__(self):
        return "cpu:0"
def devices():
    return [Device()]
"""


@pytest.fixture
def found(tmp_path: Path) -> Callable[..., Finding]:
    """Return a function that checks a fake jax, with an nvidia-smi that lists a number of GPUs."""

    def check(code: str | None, gpus: int | None = None, timeout_s: float = 60.0, **variables: str) -> Finding:
        environment = {
            name: v for name, v in os.environ.items() if name not in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")
        }
        if code is not None:
            (tmp_path / "jax.py").write_text(code)
            environment["PYTHONPATH"] = str(tmp_path)
        if gpus is not None:
            command = tmp_path / "nvidia-smi"
            command.write_text(f"#!/bin/sh\nfor i in $(seq {gpus}); do echo GPU $i: a card; done\n")
            command.chmod(0o755)
            environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"
        return devices.check("jax", {**environment, **variables}, timeout_s)

    return check


def test_installed_jax_names_its_devices(found: Callable[..., Finding]) -> None:
    one = found(None, JAX_PLATFORMS="cpu")

    assert one.level == "ok"
    assert "sees cpu:0 cpu" in one.text or "TFRT_CPU_0" in one.text


def test_unknown_jax_platform_is_named(found: Callable[..., Finding]) -> None:
    one = found(None, JAX_PLATFORMS="nonsense")

    assert (one.level, one.fix) == ("wrong", "unset JAX_PLATFORMS")
    assert "JAX_PLATFORMS=nonsense" in one.text


def test_gpu_not_seen_by_jax_names_the_install_command(found: Callable[..., Finding]) -> None:
    one = found(SEES_THE_CPU, gpus=2)

    assert (one.level, one.fix) == ("wrong", "pip install 'birdie-zmq[cuda]'")
    assert "nvidia-smi lists 2 GPUs, which jax does not see" in one.text


@pytest.mark.parametrize(
    ("variables", "fix"),
    [
        ({"JAX_PLATFORMS": "cpu"}, "unset JAX_PLATFORMS"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "unset CUDA_VISIBLE_DEVICES"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "unset CUDA_VISIBLE_DEVICES"),
    ],
)
def test_variable_that_hides_a_gpu_is_named(found: Callable[..., Finding], variables: dict[str, str], fix: str) -> None:
    one = found(SEES_THE_CPU, gpus=1, **variables)

    assert one.level == "warning"
    assert next(iter(variables)) in one.text
    assert one.fix.startswith(fix)


def test_machine_without_gpus_is_ok(found: Callable[..., Finding]) -> None:
    assert found(SEES_THE_CPU).level == "ok"
    assert found(SEES_THE_CPU, gpus=0).level == "ok"


def test_hanging_jax_is_killed_with_its_children(found: Callable[..., Finding]) -> None:
    code = "import subprocess, time\nsubprocess.Popen(['sleep', '300'])\ntime.sleep(300)"

    one = found(code, timeout_s=2.0)

    assert one.level == "wrong"
    assert "within 2 s" in one.text
    assert "--device cpu" in one.fix


def test_crashing_jax_is_reported(found: Callable[..., Finding]) -> None:
    one = found("import os; os.abort()")

    assert (one.level, one.fix) == ("wrong", "pip install --upgrade jax")
    assert "SIGABRT" in one.text


def test_failing_jax_import_shows_its_traceback(found: Callable[..., Finding]) -> None:
    one = found("raise RuntimeError('jaxlib is of another version')")

    assert one.level == "wrong"
    assert "RuntimeError: jaxlib is of another version" in one.text
    assert "Traceback" in one.detail


def test_missing_jax_names_the_install_command(found: Callable[..., Finding]) -> None:
    one = found("import sys; del sys.modules['jax']; raise ModuleNotFoundError(\"No module named 'jax'\")")

    assert (one.level, one.fix) == ("wrong", "pip install jax")


def test_missing_torch_names_the_install_command(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")

    one = devices.check("torch", {**os.environ, "PYTHONPATH": str(tmp_path)})

    assert (one.level, one.fix) == ("wrong", "pip install 'birdie-zmq[torch]'")

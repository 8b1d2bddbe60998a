"""User modules and engines that raise, lack a function, hang or kill their process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from birdie_zmq.tools.doctor import user_module

VALID = "def load_model(model_tag): ...\n\n\ndef load_tokenizer(model_tag): ...\n"


@pytest.fixture
def module(tmp_path: Path) -> Path:
    return tmp_path / "api.py"


def test_built_in_user_module_loads_the_demo() -> None:
    imported = user_module.check(None, "jax", None, os.environ)
    loaded = user_module.check(None, "jax", "demo", os.environ)

    assert (imported.name, imported.level) == ("api.py", "ok")
    assert (loaded.name, loaded.level) == ("model", "ok")
    assert "parameters, float32" in loaded.text


def test_unknown_model_tag_lists_the_possible_ones() -> None:
    one = user_module.check(None, "jax", "/not/there", os.environ)

    assert one.level == "wrong"
    assert one.fix.startswith("pass another --model-tag: demo")


def test_failing_import_names_the_line(module: Path) -> None:
    module.write_text(VALID + "import no_such_package\n")

    one = user_module.check(module, "jax", None, os.environ)

    assert one.level == "wrong"
    assert "No module named 'no_such_package'" in one.text
    assert "import no_such_package" in one.detail
    assert one.fix == f"edit {module}, line 5"


def test_missing_function_is_named(module: Path) -> None:
    module.write_text(VALID.replace("load_tokenizer", "load_tokeniser"))

    one = user_module.check(module, "jax", None, os.environ)

    assert (one.level, one.fix) == ("wrong", f"edit {module}")
    assert "load_tokenizer" in one.text


def test_user_module_may_print(module: Path) -> None:
    module.write_text(VALID + "print('birdie-zmq doctor: no json', end='')\n")

    assert user_module.check(module, "jax", None, os.environ).level == "ok"


def test_failing_load_model_shows_its_traceback(model_files: Path) -> None:
    one = user_module.check(model_files / "broken.py", "jax", "raises", os.environ)

    assert one.level == "wrong"
    assert "OSError: no weights at /nowhere" in one.text
    assert 'return load_weights("/nowhere")' in one.detail
    assert one.fix.startswith(f"edit {model_files / 'broken.py'}, line ")


def test_user_module_that_kills_its_process_is_reported(module: Path) -> None:
    module.write_text(VALID + "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")

    one = user_module.check(module, "jax", None, os.environ)

    assert (one.level, one.fix) == ("wrong", "add memory, or load a smaller model")
    assert "SIGKILL" in one.text


def test_hanging_user_module_times_out(module: Path) -> None:
    module.write_text(VALID + "import time\ntime.sleep(300)\n")

    one = user_module.check(module, "jax", None, os.environ, timeout_s=6.0)

    assert one.level == "wrong"
    assert "took over 6 s" in one.text
    assert "py-spy" in one.fix


def test_failing_engine_import_is_reported(tmp_path: Path) -> None:
    engine = tmp_path / "engine.py"
    engine.write_text("import no_such_framework\n")
    missing = user_module.check(None, str(engine), None, os.environ)
    engine.write_text("")
    empty = user_module.check(None, str(engine), None, os.environ)

    assert (missing.level, missing.fix) == ("wrong", "pip install no_such_framework")
    assert (empty.level, empty.fix) == ("wrong", f"edit {engine}")

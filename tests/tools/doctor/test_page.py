"""Pages and engines that raise, lack a function, hang or kill their process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from birdie_zmq.tools.doctor import page

WHOLE = "def load_model(model_tag): ...\n\n\ndef load_tokenizer(model_tag): ...\n"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return tmp_path / "page.py"


def test_the_built_in_page_loads_the_demo() -> None:
    imported = page.check(None, "jax", None, os.environ)
    loaded = page.check(None, "jax", "demo", os.environ)

    assert (imported.name, imported.level) == ("page", "ok")
    assert (loaded.name, loaded.level) == ("model", "ok")
    assert "parameters, float32" in loaded.text


def test_a_tag_that_it_does_not_know_is_answered_with_those_that_it_may() -> None:
    one = page.check(None, "jax", "/not/there", os.environ)

    assert one.level == "wrong"
    assert one.cure.startswith("give another --model-tag: demo")


def test_a_page_that_cannot_be_imported_is_shown_with_its_line(written: Path) -> None:
    written.write_text(WHOLE + "import no_such_package\n")

    one = page.check(written, "jax", None, os.environ)

    assert one.level == "wrong"
    assert "No module named 'no_such_package'" in one.text
    assert "import no_such_package" in one.detail
    assert one.cure == f"edit {written}, line 5"


def test_a_page_that_lacks_a_function_is_named(written: Path) -> None:
    written.write_text(WHOLE.replace("load_tokenizer", "load_tokeniser"))

    one = page.check(written, "jax", None, os.environ)

    assert (one.level, one.cure) == ("wrong", f"edit {written}")
    assert "load_tokenizer" in one.text


def test_a_page_that_prints_is_none_the_worse_for_it(written: Path) -> None:
    written.write_text(WHOLE + "print('birdie-zmq doctor: no json', end='')\n")

    assert page.check(written, "jax", None, os.environ).level == "ok"


def test_a_model_that_raises_is_shown_with_the_page_s_traceback(pages: Path) -> None:
    one = page.check(pages / "broken.py", "jax", "raises", os.environ)

    assert one.level == "wrong"
    assert "OSError: no weights at /nowhere" in one.text
    assert 'return load_weights("/nowhere")' in one.detail
    assert one.cure.startswith(f"edit {pages / 'broken.py'}, line ")


def test_a_page_that_kills_its_process_is_named(written: Path) -> None:
    written.write_text(WHOLE + "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")

    one = page.check(written, "jax", None, os.environ)

    assert (one.level, one.cure) == ("wrong", "give it more memory, or a smaller model")
    assert "SIGKILL" in one.text


def test_a_page_that_hangs_is_given_up(written: Path) -> None:
    written.write_text(WHOLE + "import time\ntime.sleep(300)\n")

    one = page.check(written, "jax", None, os.environ, timeout_s=6.0)

    assert one.level == "wrong"
    assert "took over 6 s" in one.text
    assert "py-spy" in one.cure


def test_an_engine_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    engine = tmp_path / "engine.py"
    engine.write_text("import no_such_framework\n")
    missing = page.check(None, str(engine), None, os.environ)
    engine.write_text("")
    empty = page.check(None, str(engine), None, os.environ)

    assert (missing.level, missing.cure) == ("wrong", "pip install no_such_framework")
    assert (empty.level, empty.cure) == ("wrong", f"edit {engine}")

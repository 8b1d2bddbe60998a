"""The hook registers this model with lm_eval, in new processes, and changes nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOOK = ROOT / "lm_eval_hook"


def run(program: str, *flags: str, **environment: str) -> Any:
    """Run a program that prints one line of JSON, and return the decoded JSON.

    It imports from the folders of this process, the checkout first. With -S no .pth files are read, so the hook is only
    active if the program imports it.
    """
    path = os.pathsep.join([str(HOOK), str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-S", *flags, "-c", program],
        env={**os.environ, "PYTHONPATH": path, "BIRDIE_ZMQ_NO_HOOK": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


IMPORT_HOOK = "import _birdie_zmq_hook; "
IMPORT_MODELS = "import lm_eval.models; "
PRINT_MODELS = """
import json
from lm_eval.api.registry import model_registry
print(json.dumps(sorted(model_registry.keys())))
"""


def built_in() -> set[str]:
    models = set(run(IMPORT_MODELS + PRINT_MODELS))
    assert {"hf", "vllm", "dummy"} <= models
    assert "birdie_zmq" not in models
    return models


def test_model_is_registered_beside_the_built_in_ones() -> None:
    assert set(run(IMPORT_HOOK + IMPORT_MODELS + PRINT_MODELS)) == {"birdie_zmq", *built_in()}


def test_model_is_registered_if_lm_eval_is_already_imported() -> None:
    assert set(run(IMPORT_MODELS + IMPORT_HOOK + PRINT_MODELS)) == {"birdie_zmq", *built_in()}


def test_hook_can_be_disabled() -> None:
    models = run(IMPORT_HOOK + IMPORT_MODELS + PRINT_MODELS, BIRDIE_ZMQ_NO_HOOK="1")

    assert set(models) == built_in()


def test_registered_name_resolves_to_the_class() -> None:
    program = IMPORT_HOOK + "import json; from lm_eval.api.registry import get_model; kind = get_model('birdie_zmq'); "

    assert run(program + "print(json.dumps([kind.__module__, kind.__name__]))") == [
        "birdie_zmq.harness.model",
        "BirdieZMQ",
    ]


def test_registering_does_not_import_the_class() -> None:
    program = IMPORT_HOOK + IMPORT_MODELS + "import json, sys; print(json.dumps('harness_model' in sys.modules))"

    assert run(program) is False


def test_existing_registration_is_kept() -> None:
    """Versions of lm_eval that read entry points register the model themselves."""
    program = """
import json
import lm_eval.models
from lm_eval.api.registry import model_registry
model_registry.register("birdie_zmq", target="somewhere:Else")
import _birdie_zmq_hook
print(json.dumps(model_registry._objs["birdie_zmq"]))
"""

    assert run(program) == "somewhere:Else"


def test_installing_twice_changes_nothing() -> None:
    program = IMPORT_HOOK + "_birdie_zmq_hook.install(); "
    count = "import json, sys; print(json.dumps(sum(type(f).__name__ == 'Finder' for f in sys.meta_path)))"

    assert run(program + count) == 1
    assert set(run(program + IMPORT_MODELS + "_birdie_zmq_hook.install(); " + PRINT_MODELS)) == {
        "birdie_zmq",
        *built_in(),
    }


def test_hook_imports_only_os_and_sys() -> None:
    program = f"""
import os, sys
before = set(sys.modules)
sys.path.insert(0, {str(HOOK)!r})
import _birdie_zmq_hook
after = set(sys.modules)
import json
print(json.dumps(sorted(after - before)))
"""

    assert run(program, "-I") == ["_birdie_zmq_hook"]


def test_hook_does_nothing_without_lm_eval() -> None:
    program = f"""
import sys
sys.path.insert(0, {str(HOOK)!r})
import _birdie_zmq_hook
import json
try:
    import lm_eval.models
except ModuleNotFoundError as error:
    print(json.dumps(error.name))
"""

    assert run(program, "-I") == "lm_eval"

"""The probe that imports a user module, run in a child process.

``python -m birdie_zmq.tools.doctor.user_module_probe PATH ENGINE [TAG]``, with an empty PATH for the built-in module, prints
one line of JSON: a description of the loaded model, or the error with the traceback of the user module.
"""

from __future__ import annotations

import json
import sys
import time

from birdie_zmq.errors import BirdieError
from birdie_zmq.protocol import messages as m
from birdie_zmq.tools.doctor.child import MARKER
from birdie_zmq.types import ErrorReport, ModelSpec
from birdie_zmq.worker.engine_registry import import_engine
from birdie_zmq.worker.model_loader import load
from birdie_zmq.worker.user_module import import_user_module


def main(path: str, engine: str, tag: str | None = None) -> dict[str, object]:
    """Import an engine and a user module, and load a model if a tag is given.

    Args:
        path: The path of the ``api.py``, empty for the built-in one.
        engine: The engine, as `birdie_zmq.worker.engine_registry.find_engine` returns it.
        tag: The model tag, None to load no model.
    """
    try:
        started = time.monotonic()
        imported = import_engine(engine)
        if tag is None:
            imported.prepare()
            import_user_module(path or None)
            return {}
        config = m.WorkerConfig(engine=engine, api=path or None)
        loaded = load(m.StartModel(model=ModelSpec(tag=tag), start_count=1, config=config), imported)
        description = loaded.describe()
        return {
            "seconds": time.monotonic() - started,
            "parameters": description.num_parameters,
            "dtype": description.dtype,
            "max_length": description.max_length,
            "devices": description.devices,
            "warnings": loaded.warnings,
        }
    except BirdieError as error:
        report = ErrorReport.of(error)
        return {"code": report.code, "error": report.message, "traceback": report.traceback}


if __name__ == "__main__":
    print("\n" + MARKER + json.dumps(main(*sys.argv[1:])), flush=True)  # noqa: T201 -- read by the doctor

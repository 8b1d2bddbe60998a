"""The child in which a page is tried.

``python -m birdie_zmq.tools.doctor.page_probe PAGE ENGINE [TAG]``, where an empty PAGE is the built-in one, prints one line of JSON:
what was loaded, or the error with the traceback of the page.
"""

from __future__ import annotations

import json
import sys
import time

from birdie_zmq.errors import BirdieError
from birdie_zmq.protocol import messages as m
from birdie_zmq.tools.doctor.child import MARK
from birdie_zmq.types import ErrorReport, ModelSpec
from birdie_zmq.worker.engine_registry import import_engine
from birdie_zmq.worker.model_loader import load
from birdie_zmq.worker.user_module import import_user_module


def main(page: str, engine: str, tag: str | None = None) -> dict[str, object]:
    """Import an engine and a page, and load a model if one is named.

    Args:
        page: The path of the page, empty for the built-in one.
        engine: As `birdie_zmq.worker.engine_registry.find_engine` gives it.
        tag: The model's, None to load none.
    """
    try:
        began = time.monotonic()
        used = import_engine(engine)
        if tag is None:
            used.prepare()
            return {"page": import_user_module(page or None).name}
        loaded = load(m.LoadModel(model=ModelSpec(tag=tag), api=page or None, start_count=1), used)
        found = loaded.describe()
        return {
            "page": found.api,
            "seconds": time.monotonic() - began,
            "parameters": found.num_parameters,
            "dtype": found.dtype,
            "vocabulary": found.vocab_size,
            "max_length": found.max_length,
            "devices": found.devices,
            "warnings": loaded.warnings,
        }
    except BirdieError as error:
        report = ErrorReport.of(error)
        return {"code": report.code, "error": report.message, "traceback": report.traceback}


if __name__ == "__main__":
    print("\n" + MARK + json.dumps(main(*sys.argv[1:])), flush=True)  # noqa: T201 -- what the doctor reads

"""Children of processes whose standard error is unusual."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import os, sys
from birdie_zmq.processes.spawn import module_command, start
{before}
child = start([sys.executable, "-c", "import sys; print('out', flush=True); sys.stderr.write('err'); sys.exit(7)"], os.environ)
os._exit(child.wait())
"""


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", b"out\nerr"),
        ("class Tee:\n    def write(self, text): ...\n    def flush(self): ...\nsys.stderr = Tee()", b"out\nerr"),
        ("sys.stderr = None", b"out\nerr"),
        ("sys.stderr = sys.__stderr__ = None", b""),
        ("os.close(2)", b""),
        ("sys.__stderr__.close()", b""),
    ],
    ids=["plain", "tee", "none", "without", "closed descriptor", "closed stream"],
)
def test_child_writes_to_standard_error_if_there_is_one(before: str, expected: bytes) -> None:
    command = [sys.executable, "-c", CODE.format(before=before)]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (7, b"")
    assert done.stderr == expected

"""Workers on a real Ray cluster. Where Ray is not installed, these tests are not even looked at."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("ray") is None:
    collect_ignore_glob = ["test_*.py"]

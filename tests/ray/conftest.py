"""Workers on a real Ray cluster. These tests are not collected where Ray is not installed."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("ray") is None:
    collect_ignore_glob = ["test_*.py"]

"""Jobs on a real Slurm. Where there is none, these tests are not even looked at."""

from __future__ import annotations

import shutil

if shutil.which("sbatch") is None:
    collect_ignore_glob = ["test_*.py"]

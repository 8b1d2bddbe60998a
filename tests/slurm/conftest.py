"""Jobs on a real Slurm cluster. These tests are not collected where there is no Slurm."""

from __future__ import annotations

import shutil

if shutil.which("sbatch") is None:
    collect_ignore_glob = ["test_*.py"]

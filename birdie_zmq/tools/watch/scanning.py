"""Finds the checkpoints of a run: paths that match a pattern, their steps, and whether they are complete."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from birdie_zmq.errors import UsageError
from birdie_zmq.models.completeness import missing_part
from birdie_zmq.models.native.directory import ORBAX_TEMPORARY
from birdie_zmq.tools.watch.core import Sighting

STEP_PATTERN = r"(?:(?:step|checkpoint|ckpt|iter|epoch|run)[-_=]?|^)(\d+)(?:\.weights\.h5|\.gguf)?$"
"""The names of checkpoints whose step is known without an option: ``step_500``, ``checkpoint-500``, ``500``.

Trainers write ``run-500`` (EasyDeL), ``ckpt_500`` (kauldron), ``step-500`` (Levanter), ``500`` (MaxText, Tunix) and
``epoch_5.weights.h5`` (Keras).
"""

_TEMPORARY = re.compile(r"^tmp[-_.]|\.tmp$|\.partial$|^\.|" + re.escape(ORBAX_TEMPORARY))
"""The names under which trainers write a checkpoint before they rename it."""


class Scanner:
    """Scans for the checkpoints of one run.

    Args:
        pattern: The paths of the checkpoints, with wildcards as of `glob`.
        step_pattern: A regular expression that finds the step in the name of a checkpoint or of a directory above it; the
            first group with digits is the step.
        missing_part: Returns what a checkpoint still lacks, None if it is complete.

    Attributes:
        pattern: The absolute pattern.

    Raises:
        UsageError: The expression is invalid, or has no group.
    """

    def __init__(
        self,
        pattern: str,
        step_pattern: str = STEP_PATTERN,
        missing_part: Callable[[Path], str | None] = missing_part,
    ) -> None:
        # Links are kept: the pattern's own names hold the steps.
        self.pattern = os.path.abspath(pattern)  # noqa: PTH100
        parts = Path(self.pattern).parts
        # The directories above the first wildcard are those of the run: a year in their names is no step.
        self._fixed_parts = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
        try:
            self._step = re.compile(step_pattern)
        except re.error as error:
            raise UsageError(f"--step-pattern {step_pattern!r} is not a regular expression: {error}") from error
        if not self._step.groups:
            raise UsageError(
                f"--step-pattern {step_pattern!r} has no group; put the digits in parentheses, as in 'step_(\\d+)'"
            )
        self._missing_part = missing_part
        self._missing: dict[str, tuple[str, str | None]] = {}

    def scan(self) -> tuple[list[Sighting], list[str]]:
        """Return the checkpoints, and the paths that match but whose names have no step.

        Raises:
            UsageError: Two checkpoints have the same step.
        """
        found: dict[int, Sighting] = {}
        unnamed = []
        for path in map(Path, sorted(glob.glob(self.pattern))):  # noqa: PTH207 - an absolute pattern
            if _TEMPORARY.search(path.name):
                continue
            step = self._step_of(path)
            if step is None:
                unnamed.append(str(path))
                continue
            if step in found:
                raise UsageError(
                    f"{found[step].path} and {path} both have the step {step}; watch one run at a time, or name the step "
                    "with --step-pattern"
                )
            found[step] = self._sighting(path, step)
        self._missing = {
            path: known for path, known in self._missing.items() if path in {s.path for s in found.values()}
        }
        return list(found.values()), unnamed

    def _step_of(self, path: Path) -> int | None:
        """Return the step in the name of a checkpoint, else in that of a directory above it that the wildcards match."""
        for part in reversed(path.parts[self._fixed_parts :]):
            match = self._step.search(part)
            if match is not None:
                digits = next((group for group in match.groups() if group), "")
                if digits.isdecimal():
                    return int(digits)
        return None

    def _sighting(self, path: Path, step: int) -> Sighting:
        state = state_of(path)
        known = self._missing.get(str(path))
        # Headers are read only when a file has changed.
        missing = known[1] if known is not None and known[0] == state else self._missing_part(path)
        self._missing[str(path)] = (state, missing)
        return Sighting(step, str(path), missing, state)


def state_of(path: Path) -> str:
    """Return a hash of the names, sizes and modification times of a checkpoint's files."""
    digest = hashlib.sha256()
    for name, status in sorted(_files(path)):
        digest.update(f"{name}\0{status[0]}\0{status[1]}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _files(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the relative name of each file below a path, its size in bytes and its modification time in nanoseconds."""
    if not path.is_dir():
        paths = [path]
    else:
        paths = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    for each in paths:
        try:
            status = each.stat()
        except OSError:  # it has just been removed
            continue
        yield str(each.relative_to(path)), (status.st_size, status.st_mtime_ns)

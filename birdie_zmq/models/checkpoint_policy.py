"""Which checkpoints the built-in page offers: all that a tag can name, or what a worker was started with.

Whoever asks for a model chooses its tag. A worker that serves others says by its options what they may choose from; they
reach its model process through the environment, so that a page that falls through to `birdie_zmq.models` is held to
them as well.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "BIRDIE_ZMQ_OFFER"


@dataclass(frozen=True)
class CheckpointPolicy:
    """What tags may name beside the built-in models.

    Attributes:
        folders: The folders in which checkpoints are offered, absolute; None for the whole machine.
        hub: Whether a repository of the Hugging Face hub may be named, and so be downloaded.
    """

    folders: tuple[Path, ...] | None = None
    hub: bool = True

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> CheckpointPolicy:
        """What an environment says; everything, where it says nothing."""
        said = environment.get(VARIABLE)
        if said is None:
            return cls()
        words = json.loads(said)
        return cls(tuple(map(Path, words["folders"])), words["hub"])

    @classmethod
    def limited(cls, folders: Sequence[Path], *, hub: bool) -> CheckpointPolicy:
        """What lies in these folders, and the hub or not."""
        return cls(tuple(Path(os.path.normpath(folder.absolute())) for folder in folders), hub)

    def as_variable(self) -> dict[str, str]:
        """What to put into the environment of a model process."""
        if self.folders is None:
            return {}
        return {VARIABLE: json.dumps({"folders": [str(folder) for folder in self.folders], "hub": self.hub})}

    def __str__(self) -> str:
        if self.folders is None:
            return "all"
        places = [f"those in {folder}" for folder in self.folders] + ["repositories of the hub"] * self.hub
        return ", ".join(["the demo", *places])

    def find(self, tag: str) -> Path | None:
        """The offered path that a tag names, whether or not anything is there; None if it names none.

        Where folders are offered, a tag is one of them or a path in it, from the folder on or from the root. Dots are
        resolved in the words alone, so that no link on the way can lead them elsewhere; a link that lies in such a
        folder was put there by whoever offers it.
        """
        path = expanded(tag)
        if self.folders is None:
            return path
        inside = [
            Path(found)
            for folder in self.folders
            if Path(found := os.path.normpath(folder / path)).is_relative_to(folder)
        ]
        return next(filter(Path.exists, inside), inside[0] if inside else None)


def expanded(tag: str) -> Path:
    """A tag as a path, its ``~`` the home directory; the user of a ``~user`` may be unknown, and then it stays."""
    path = Path(tag)
    with contextlib.suppress(RuntimeError):
        return path.expanduser()
    return path

"""The checkpoint policy: which paths and hub repositories the built-in models may load.

The client chooses the model tag. By default it may name any of them; options of the worker restrict it. The model process
sets the policy for itself before it imports the user module, so an ``api.py`` that falls back to `birdie_zmq.models` is
restricted as well.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from birdie_zmq.user_folders import expand_home


@dataclass(frozen=True)
class CheckpointPolicy:
    """What tags may name in addition to the built-in models.

    Attributes:
        folders: The folders from which checkpoints may be loaded, absolute; None for the whole machine.
        hub: Whether a tag may name a repository of the Hugging Face hub, which may be downloaded.
    """

    folders: tuple[Path, ...] | None = None
    hub: bool = True

    @classmethod
    def limited(cls, folders: Sequence[Path], *, hub: bool) -> CheckpointPolicy:
        """Return a policy that allows only checkpoints in these folders and, with `hub`, hub repositories."""
        return cls(tuple(Path(os.path.normpath(folder.absolute())) for folder in folders), hub)

    def __str__(self) -> str:
        if self.folders is None:
            return "all"
        sources = [f"those in {folder}" for folder in self.folders] + ["repositories of the hub"] * self.hub
        return ", ".join(["the demo", *sources])

    def find(self, tag: str) -> Path | None:
        """Return the allowed path that a tag names, whether or not it exists; None if the tag names no allowed path.

        With restricted folders, a tag is one of the folders or a path inside one, relative to the folder or absolute.
        Dots are resolved lexically, so no symbolic link on the way can redirect them. A link inside an allowed folder
        is followed: the administrator of the folder put it there.
        """
        path = expand_tag(tag)
        if self.folders is None:
            return path
        inside = [
            Path(found)
            for folder in self.folders
            if Path(found := os.path.normpath(folder / path)).is_relative_to(folder)
        ]
        return next(filter(Path.exists, inside), inside[0] if inside else None)


_process_policy = CheckpointPolicy()


def set_process_policy(policy: CheckpointPolicy) -> None:
    """Let a policy apply to all checkpoints that this process loads from now on; without this call, all are allowed."""
    global _process_policy
    _process_policy = policy


def process_policy() -> CheckpointPolicy:
    """Return the policy of this process."""
    return _process_policy


def expand_tag(tag: str) -> Path:
    """Return a tag as a path with ``~`` expanded to the home directory; ``~user`` stays if the user is unknown."""
    return expand_home(Path(tag))

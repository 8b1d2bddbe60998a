"""Redraws the pictures of the documentation: ``python -m benchmarks.pictures``, from a checkout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.pictures import layouts, mask, refilling, request, tree, windows

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "images"

PICTURES: dict[str, Callable[[], str]] = {
    "request": request.draw,
    "tree": tree.draw,
    "layouts": layouts.draw,
    "mask": mask.draw,
    "windows": windows.draw,
    "refilling": refilling.draw,
}


def main() -> None:
    """Write all pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")
        print(FOLDER / f"{name}.svg")


if __name__ == "__main__":
    main()

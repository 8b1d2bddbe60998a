"""The pictures of the documentation match the encoder and the planners."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from benchmarks.pictures.__main__ import FOLDER, PICTURES
from benchmarks.pictures.canvas import WIDTH

_PAGE = FOLDER.parent / "explanation" / "how_scoring_works.md"


@pytest.mark.parametrize("name", PICTURES)
def test_picture_matches_its_script(name: str) -> None:
    drawn = PICTURES[name]()

    assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == drawn, "redraw with: python -m benchmarks.pictures"


@pytest.mark.parametrize("name", PICTURES)
def test_boxes_stay_inside_the_picture(name: str) -> None:
    root = ElementTree.fromstring((FOLDER / f"{name}.svg").read_text(encoding="utf-8"))
    height = float(root.attrib["viewBox"].split()[3])

    boxes = [element.attrib for element in root.iter() if element.tag.endswith("rect")]

    assert len(boxes) > 10
    for box in boxes:
        x, y = float(box["x"]), float(box["y"])
        assert x >= 0
        assert x + float(box["width"]) <= WIDTH
        assert y >= 0
        assert y + float(box["height"]) <= height


def test_page_shows_each_picture_once_with_alternative_text() -> None:
    shown = re.findall(r"!\[([^\]]+)\]\(\.\./images/(\w+)\.svg\)", _PAGE.read_text(encoding="utf-8"))

    assert sorted(name for _, name in shown) == sorted(PICTURES)
    assert sorted(file.stem for file in FOLDER.glob("*.svg")) == sorted(PICTURES)
    assert all(len(alternative) > 40 for alternative, _ in shown)

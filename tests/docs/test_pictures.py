"""The pictures of the documentation are what the encoder and the planners do."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from benchmarks.pictures.__main__ import FOLDER, PICTURES
from benchmarks.pictures.canvas import WIDTH

_PAGE = FOLDER.parent / "explanation" / "how_scoring_works.md"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_its_script_draws(name: str) -> None:
    drawn = PICTURES[name]()

    assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == drawn, "draw anew: python -m benchmarks.pictures"


@pytest.mark.parametrize("name", PICTURES)
def test_nothing_of_a_picture_leaves_its_ground(name: str) -> None:
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


def test_the_page_shows_each_picture_once_and_says_what_is_on_it() -> None:
    shown = re.findall(r"!\[([^\]]+)\]\(\.\./images/(\w+)\.svg\)", _PAGE.read_text(encoding="utf-8"))

    assert sorted(name for _, name in shown) == sorted(PICTURES)
    assert sorted(file.stem for file in FOLDER.glob("*.svg")) == sorted(PICTURES)
    assert all(len(alternative) > 40 for alternative, _ in shown)

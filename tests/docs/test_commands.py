"""Every command of README.md and docs/ works, in the order of its page.

A ``sh`` block contains commands; a ``python`` block with a title is a file that the reader saves. A broker or worker is
left running until the end of the page, or until another broker is started. A run of lm_eval takes about ten seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from birdie_zmq.settings import DEFAULT_STATUS_PORT
from tests.docs.as_typed import NOT_RUN, PREPARED, SUBSTITUTIONS, commands, ready_mark, substituted, without_comment
from tests.docs.markdown import ROOT, Block, blocks, pages
from tests.docs.reader import Machine, Reader


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def steps(page: Path) -> list[tuple[Block, str | None]]:
    """Return the steps of a page: a block with a command, or with None for a file to save."""
    found: list[tuple[Block, str | None]] = []
    for block in blocks(page):
        if block.language == "sh":
            found += [(block, command) for command in commands(block) if without_comment(command) not in NOT_RUN]
        elif block.language == "python" and block.rest:
            found.append((block, None))
    return found


WITH_COMMANDS = [page for page in pages() if any(command for _, command in steps(page))]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture
def reader(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Reader]:
    """Provide a fresh reader for each page."""
    new_reader = Reader(machine, machine.folder / f"page{len(list(machine.folder.glob('page*.home')))}")
    try:
        yield new_reader
    finally:
        new_reader.end()


@pytest.mark.docs
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_commands_of_a_page_work_in_order(page: Path, reader: Reader) -> None:
    for prepared in PREPARED.get(name_of(page), ()):
        reader.type(f"before {name_of(page)}", prepared)
    for block, command in steps(page):
        if command is None:
            reader.save(block)
        else:
            reader.type(block.where, command)


@pytest.mark.docs
def test_failed_command_is_named(reader: Reader) -> None:
    with pytest.raises(AssertionError, match=r"README\.md:1: exited with status 3: exit 3"):
        reader.type("README.md:1", "exit 3")
    with pytest.raises(AssertionError, match="expected to keep running, but exited with status 2"):
        reader.type("README.md:1", "birdie-zmq broker --bind nowhere")
    reader._running.clear()
    with pytest.raises(AssertionError, match="exited with status 1"):
        reader.type("README.md:1", "false | true")


@pytest.mark.docs
def test_broker_that_exits_early_is_named(machine: Machine) -> None:
    new_reader = Reader(machine, machine.folder / "ends")
    new_reader.type("here", "python broker.py")
    new_reader._running[0].process.terminate()
    new_reader._running[0].process.wait(30)

    with pytest.raises(AssertionError, match=r"python broker\.py exited early"):
        new_reader.end()


def every_command() -> list[str]:
    """Return the commands of all pages, without their comments."""
    found = [
        command for page in pages() for block in blocks(page) if block.language == "sh" for command in commands(block)
    ]
    return [without_comment(command) for command in found]


def test_each_command_that_is_not_run_is_on_a_page() -> None:
    assert [command for command in NOT_RUN if command not in every_command()] == []


def test_every_substitution_is_used() -> None:
    substitutable = [*every_command(), f"the default of --status-port: {DEFAULT_STATUS_PORT}"]
    used = {each for each in SUBSTITUTIONS for command in substitutable if re.search(each.pattern, command)}

    assert set(SUBSTITUTIONS) - used == set()
    assert set(PREPARED) <= {name_of(page) for page in WITH_COMMANDS}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b  # why\n\nc\n", ["a b  # why", "c"]),
        ("a \\\n  b\nc\n", ["a \\\n  b", "c"]),
        ("for x in 1 2\ndo\n  a\ndone\n# only words\n", ["for x in 1 2\ndo\n  a\ndone"]),
        ("a '\nb'\n", ["a '\nb'"]),
    ],
)
def test_commands_are_split_where_the_shell_splits_them(text: str, expected: list[str]) -> None:
    assert commands(Block(ROOT / "README.md", "sh", "", 1, text)) == expected


def test_substitutions_are_applied_and_other_braces_kept() -> None:
    values = {
        "port": "1234",
        "checkpoints": "/c",
        "status_port": "1",
        "coordinator_port": "2",
        "serve_port": "3",
        "keys": "/k",
        "folder": "/f",
    }

    assert (
        substituted("a port=5555,x=/checkpoints/b key_file=client-a", values)
        == "a port=1234,x=/c/b key_file=/k/client-a"
    )
    assert substituted("""a '{"model_tag": "demo"}' 5555""", values) == """a '{"model_tag": "demo"}' 1234"""


@pytest.mark.parametrize(
    ("command", "keeps_running"),
    [
        ("python broker.py --status-port", True),
        ("birdie-zmq worker --api page.py", True),
        ("python -m workers.torch_worker", True),
        ("birdie-zmq status --once", False),
        ("lm_eval --model birdie_zmq", False),
        ("birdie-zmq keys new worker gpu1", False),
    ],
)
def test_commands_that_keep_running_are_recognised(command: str, keeps_running: bool) -> None:
    assert (ready_mark(command) is not None) == keeps_running

"""Concurrent runs that share a journal lose no answer, even if one of them is killed."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from birdie_zmq.client.journal import Journal

WRITER = """
import sys
from pathlib import Path
from birdie_zmq.client.journal import Journal
journal = Journal(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    journal.append(f"{number:032x}", "text " * (number % 50))
"""


def key(number: int) -> str:
    return f"{number:032x}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.journal"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def start_writer(path: Path, first: int, last: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(path), str(first), str(last)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"open\n"
    return writer


def test_two_concurrent_processes_lose_no_answer(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with start_writer(path, 0, 10_000) as one, start_writer(path, 10_000, 20_000) as other:
        for writer in (one, other):
            assert writer.stdin is not None
            writer.stdin.write(b"go\n")
            writer.stdin.flush()
    assert (one.returncode, other.returncode) == (0, 0)

    with contextlib.closing(Journal(path)) as journal:
        found = journal.scan({key(number) for number in range(20_000)}).answers
    assert found == {key(number): "text " * (number % 50) for number in range(20_000)}
    assert path.read_bytes().count(b"\n") == 20_001
    order = [int(line[11:43], 16) >= 10_000 for line in path.read_bytes().splitlines()[1:]]
    assert order != sorted(order)  # The processes did write concurrently.
    assert warnings(caplog) == []


def test_a_killed_writer_does_not_affect_another(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.closing(Journal(path)) as journal:
        for _ in range(5):
            with start_writer(path, 1000, 10**9) as writer:
                assert writer.stdin is not None
                writer.stdin.write(b"go\n")
                writer.stdin.flush()
                for number in range(100):
                    journal.append(key(number), float(number))
                writer.send_signal(signal.SIGKILL)
            for number in range(100):
                journal.append(key(number), float(number))

        assert journal.scan({key(number) for number in range(100)}).answers == {
            key(number): float(number) for number in range(100)
        }
    assert not [warning for warning in warnings(caplog) if "damaged" in warning]


def test_threads_may_share_a_journal(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.closing(Journal(path)) as journal, ThreadPoolExecutor(4) as pool:

        def work(first: int) -> None:
            for number in range(first, first + 200):
                journal.append(key(number), "text " * (number % 50))
                assert key(number) in journal.scan({key(number)}).answers

        list(pool.map(work, (0, 200, 400, 600)))

        assert len(journal.scan({key(number) for number in range(800)}).answers) == 800
    assert warnings(caplog) == []

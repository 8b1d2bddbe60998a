"""A run's own broker and worker live and die with it."""

from __future__ import annotations

import concurrent.futures
import json
import re
import signal
import urllib.request
from pathlib import Path

import psutil
import pytest
from lm_eval.api.instance import Instance

from birdie_zmq.client import Client
from birdie_zmq.client.client import Pulse
from birdie_zmq.client.embedded import EmbeddedProcesses
from birdie_zmq.errors import UnavailableError, UsageError
from harness_model import BirdieZMQ
from tests.integration.conftest import ROOT, Program, Programs, alive, descendants, wait_until

RUN = """
import sys, time
from harness_model import BirdieZMQ
lm = BirdieZMQ(model_tag="pair", api=sys.argv[1])
print("endpoint", lm._embedded.endpoint, flush=True)
print("ready", flush=True)
if sys.argv[2] == "raise":
    raise RuntimeError("on purpose")
time.sleep(60)
"""


def run(programs: Programs, pages: Path, then: str) -> tuple[Program, list[psutil.Process], Path]:
    """A run that is ready: the program, its broker, agent and model process, and its private folder."""
    program = programs.start("-c", RUN, str(pages / "letters.py"), then)
    folder = Path(program.wait_for(r"endpoint ipc://(\S+)/broker")[1])
    return program, descendants(program.process.pid), folder


def assert_nothing_left(processes: list[psutil.Process], folder: Path) -> None:
    wait_until(lambda: not alive(processes), "the end of all processes of the run")
    wait_until(lambda: not folder.exists(), "the removal of the private folder")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_of_a_run_that_is_ended_by_a_signal(programs: Programs, pages: Path, number: int) -> None:
    program, processes, folder = run(programs, pages, "sleep")
    assert len(processes) == 3
    assert folder.stat().st_mode & 0o777 == 0o700

    program.process.send_signal(number)

    assert_nothing_left(processes, folder)


def test_nothing_is_left_of_a_run_that_raises(programs: Programs, pages: Path) -> None:
    program = programs.start("-c", RUN, str(pages / "letters.py"), "raise")
    folder = Path(program.wait_for(r"endpoint ipc://(\S+)/broker")[1])

    assert program.process.wait(30) == 1
    assert "RuntimeError: on purpose" in program.output
    assert not folder.exists()


def test_close_ends_everything_and_may_be_called_twice(pages: Path) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    lm = BirdieZMQ(model_tag="pair", api=str(pages / "letters.py"))
    started = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    assert len(started) == 3

    lm.close()
    lm.close()

    assert not alive(started)


def test_a_runs_own_broker_has_a_status_page_where_it_is_asked_for(
    pages: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with BirdieZMQ(model_tag="pair", api=str(pages / "letters.py"), status_port=0):
        found = re.search(r"status page at (\S+)", capfd.readouterr().err)
        assert found is not None
        with urllib.request.urlopen(f"{found[1]}status.json", timeout=30) as answer:
            assert json.load(answer)["workers_connected"] == 1


def test_a_worker_of_the_run_that_ends_again_and_again_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    embedded = EmbeddedProcesses(device="cpu")
    worker = embedded._children[1]
    nothing_answered = Pulse(broker_silent_s=0.0, worker_missing_s=0.0, answered=0)
    try:
        for starts in (2, 3):
            worker.process.kill()
            worker.process.wait()
            embedded.check(nothing_answered)
            assert worker.starts == starts
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(UnavailableError, match=r"own worker ended 3 times without an answer .* status -9"):
            embedded.check(nothing_answered)
        embedded.check(Pulse(broker_silent_s=0.0, worker_missing_s=0.0, answered=1))
        assert worker.starts == 1
    finally:
        embedded.close()
    assert worker.process.poll() is not None
    assert "the run's own worker ended with status -9; it is started again" in caplog.text


def test_a_child_that_does_not_answer_is_ended_only_when_it_has_had_time_to_start() -> None:
    embedded = EmbeddedProcesses(device="cpu")
    broker = embedded._children[0]
    first = broker.process
    silent = Pulse(broker_silent_s=11.0, worker_missing_s=0.0, answered=1)
    try:
        embedded.check(silent)
        assert broker.process is first
        broker.started_at -= 11.0
        embedded.check(silent)
        assert broker.process is not first
        assert first.poll() == -signal.SIGKILL
    finally:
        embedded.close()


def test_closing_ends_a_call_that_another_thread_waits_in(pages: Path) -> None:
    lm = BirdieZMQ(model_tag="steady", api=str(pages / "faulty.py"), pause_s=2.0, batch_rows=1)
    requests = [Instance("loglikelihood_rolling", {}, (f"text {i}",), i) for i in range(20)]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        call = pool.submit(lm.loglikelihood_rolling, requests, disable_tqdm=True)
        assert isinstance(lm._client, Client)
        session = lm._client._session
        wait_until(lambda: not session.is_idle, "the call")
        lm.close()
        with pytest.raises(UsageError, match="closed while it was waiting"):
            call.result(10)


def test_the_page_in_the_current_directory_is_not_run_unasked(programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "api.py").write_text("raise SystemExit('this page must not be run')\n")
    (tmp_path / "json.py").write_text("raise SystemExit('nor this module')\n")
    script = RUN.replace(", api=sys.argv[1]", "").replace('"pair"', '"nope"')
    program = programs.start("-P", "-c", script, cwd=tmp_path, PYTHONPATH=str(ROOT))

    assert program.process.wait(60) == 1
    assert "UnknownModelTag" in program.output
    assert "must not be run" not in program.output


def test_a_broker_of_the_run_that_is_killed_is_started_again(pages: Path) -> None:
    with BirdieZMQ(model_tag="pair", api=str(pages / "letters.py")) as lm:
        first = lm.get_model_info()
        broker = next(p for p in psutil.Process().children() if re.search(r"birdie_zmq broker", " ".join(p.cmdline())))
        broker.kill()
        broker.wait()

        assert lm.get_model_info()["model_identity"] == first["model_identity"]

"""The embedded broker and worker start and end with their run."""

from __future__ import annotations

import concurrent.futures
import json
import re
import shutil
import signal
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from birdie_zmq.client import Client
from birdie_zmq.client.client import Liveness
from birdie_zmq.client.embedded import EmbeddedProcesses, WorkerOptions
from birdie_zmq.errors import UnavailableError, UsageError
from harness_model import BirdieZMQ
from tests.instances import instance
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


def start_run(programs: Programs, model_files: Path, action: str) -> tuple[Program, list[psutil.Process], Path]:
    """Start a run, wait until it is ready, and return its program, its child processes and its private folder.

    The child processes are the broker, the agent and the model process.
    """
    program = programs.start("-c", RUN, str(model_files / "letters.py"), action)
    folder = Path(program.wait_for(r"endpoint ipc://(\S+)/broker")[1])
    return program, descendants(program.process.pid), folder


def assert_nothing_left(processes: list[psutil.Process], folder: Path) -> None:
    wait_until(lambda: not alive(processes), "the end of all processes of the run")
    wait_until(lambda: not folder.exists(), "the removal of the private folder")


@pytest.mark.parametrize(
    "signal_number", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.chaos)]
)
def test_signal_leaves_no_process_and_no_folder(programs: Programs, model_files: Path, signal_number: int) -> None:
    program, processes, folder = start_run(programs, model_files, "sleep")
    assert len(processes) == 3
    assert folder.stat().st_mode & 0o777 == 0o700

    program.process.send_signal(signal_number)

    assert_nothing_left(processes, folder)


def test_exception_leaves_no_process_and_no_folder(programs: Programs, model_files: Path) -> None:
    program = programs.start("-c", RUN, str(model_files / "letters.py"), "raise")
    folder = Path(program.wait_for(r"endpoint ipc://(\S+)/broker")[1])

    assert program.process.wait(30) == 1
    assert "RuntimeError: on purpose" in program.output
    assert not folder.exists()


def test_close_ends_all_processes_and_is_idempotent(model_files: Path) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    lm = BirdieZMQ(model_tag="pair", api=str(model_files / "letters.py"))
    started = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    assert len(started) == 3

    lm.close()
    lm.close()

    assert not alive(started)


def test_status_port_starts_the_status_page_of_the_embedded_broker(
    model_files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with BirdieZMQ(model_tag="pair", api=str(model_files / "letters.py"), status_port=0):
        match = re.search(r"status page at (\S+)", capfd.readouterr().err)
        assert match is not None
        with urllib.request.urlopen(f"{match[1]}status.json", timeout=30) as answer:
            assert json.load(answer)["workers_connected"] == 1


def test_embedded_worker_is_abandoned_after_3_crashes_without_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    embedded = EmbeddedProcesses(WorkerOptions(device="cpu"))
    worker = embedded._children[1]
    nothing_answered = Liveness(broker_silent_s=0.0, worker_missing_s=0.0, answered=0)
    try:
        for failures in (1, 2):
            worker.process.kill()
            worker.process.wait()
            embedded.check(nothing_answered)
            assert worker.restarts.failures == failures
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(UnavailableError, match=r"embedded worker ended 3 times without an answer .* status -9"):
            embedded.check(nothing_answered)
        embedded.check(Liveness(broker_silent_s=0.0, worker_missing_s=0.0, answered=1))
        assert worker.restarts.failures == 0
    finally:
        embedded.close()
    assert worker.process.poll() is not None
    assert "the embedded worker ended with exit status -9; restarting it" in caplog.text


def test_silent_broker_is_restarted_only_after_its_start_timeout() -> None:
    embedded = EmbeddedProcesses(WorkerOptions(device="cpu"))
    broker = embedded._children[0]
    first = broker.process
    silent = Liveness(broker_silent_s=11.0, worker_missing_s=0.0, answered=1)
    try:
        embedded.check(silent)
        assert broker.process is first
        broker.started_at -= 11.0
        embedded.check(silent)
        assert broker.process is not first
        assert first.poll() == -signal.SIGKILL
    finally:
        embedded.close()


def test_close_ends_a_call_that_waits_in_another_thread(model_files: Path) -> None:
    lm = BirdieZMQ(model_tag="steady", api=str(model_files / "faulty.py"), pause_s=2.0, batch_rows=1)
    requests = [instance("loglikelihood_rolling", (f"text {i}",), i) for i in range(20)]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        call = pool.submit(lm.loglikelihood_rolling, requests, disable_tqdm=True)
        assert isinstance(lm._client, Client)
        core = lm._client._core
        wait_until(lambda: not core.is_idle, "the call")
        lm.close()
        with pytest.raises(UsageError, match="closed while it was waiting"):
            call.result(10)


def test_api_py_in_the_current_directory_is_not_imported_by_default(programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "api.py").write_text("raise SystemExit('this model file must not be run')\n")
    (tmp_path / "json.py").write_text("raise SystemExit('nor this module')\n")
    script = RUN.replace(", api=sys.argv[1]", "").replace('"pair"', '"nope"')
    program = programs.start("-P", "-c", script, cwd=tmp_path, PYTHONPATH=str(ROOT))

    assert program.process.wait(60) == 1
    assert "UnknownModelTag" in program.output
    assert "must not be run" not in program.output


def test_killed_embedded_broker_is_restarted(model_files: Path) -> None:
    with BirdieZMQ(model_tag="pair", api=str(model_files / "letters.py")) as lm:
        first = lm.get_model_info()
        broker = next(p for p in psutil.Process().children() if re.search(r"birdie_zmq broker", " ".join(p.cmdline())))
        broker.kill()
        broker.wait()

        assert lm.get_model_info()["model_identity"] == first["model_identity"]


def children_of_run(lm: BirdieZMQ) -> tuple[psutil.Process, psutil.Process]:
    """Return the embedded broker and the worker."""
    assert lm._embedded is not None
    broker, worker = (psutil.Process(child.process.pid) for child in lm._embedded._children)
    return broker, worker


def kill(process: psutil.Process) -> None:
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    "killed",
    [["broker", "worker"], *(pytest.param(some, marks=pytest.mark.chaos) for some in (["worker"], ["broker"], []))],
)
def test_a_removed_socket_folder_does_not_stop_the_run(
    model_files: Path, killed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with BirdieZMQ(model_tag="pair", api=str(model_files / "letters.py")) as lm:
        first = lm.get_model_info()
        assert lm._embedded is not None
        folder = Path(lm._embedded.endpoint.removeprefix("ipc://")).parent
        broker, worker = children_of_run(lm)
        shutil.rmtree(folder)
        for name, process in (("broker", broker), ("worker", worker)):
            if name in killed:
                kill(process)
        began = time.monotonic()
        requests = [instance("loglikelihood_rolling", ("some text",), 0)]
        assert len(lm.loglikelihood_rolling(requests, disable_tqdm=True)) == 1
        assert lm.get_model_info()["model_identity"] == first["model_identity"]
        assert time.monotonic() - began < 60.0
        if killed:
            assert folder.stat().st_mode & 0o777 == 0o700
        wait_until(folder.exists, "the return of the folder")
    assert not folder.exists()


def test_a_socket_folder_that_another_user_may_have_made_ends_the_run(model_files: Path) -> None:
    with BirdieZMQ(model_tag="pair", api=str(model_files / "letters.py")) as lm:
        assert lm._embedded is not None
        folder = Path(lm._embedded.endpoint.removeprefix("ipc://")).parent
        broker, worker = children_of_run(lm)
        broker.suspend()
        shutil.rmtree(folder)
        folder.mkdir()
        folder.chmod(0o755)
        kill(worker)
        broker.resume()
        requests = [instance("loglikelihood_rolling", ("some text",), 0)]
        with pytest.raises(UsageError, match="replaced by one that other users can access"):
            lm.loglikelihood_rolling(requests, disable_tqdm=True)

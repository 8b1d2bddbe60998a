"""Faults that need real processes: each is survived, and no other request loses its answer."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook

from birdie_zmq.errors import ModelChanged, ModelProcessDied
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import ModelDescription
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import Programs, descendants, wait_until

TEXTS = [f"the {word} sat on the mat {count} times" for word in ("cat", "dog", "owl", "fox") for count in range(8)]
SETTINGS = ClientSettings(batch_items=8)


def requests(texts: Sequence[str]) -> list[Instance]:
    return [
        instance("loglikelihood_rolling", (text,), 0, task="faults", doc_id=number) for number, text in enumerate(texts)
    ]


class AnswerRecorder(CacheHook):
    """Records the answers that lm_eval receives for each text, in order."""

    def __init__(self) -> None:
        super().__init__(None)
        self.answers: dict[str, list[Any]] = {}

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        (text,) = req
        self.answers.setdefault(text, []).append(res)


class Run:
    """A call of ``loglikelihood_rolling`` in its own thread, so that a test can inject a fault meanwhile."""

    def __init__(self, lm: BirdieZMQ, texts: Sequence[str]) -> None:
        self.recorder = AnswerRecorder()
        self._texts = texts
        lm.set_cache_hook(self.recorder)
        self.scores: list[float] | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._score, args=(lm,))
        self._thread.start()

    def _score(self, lm: BirdieZMQ) -> None:
        try:
            self.scores = lm.loglikelihood_rolling(requests(self._texts), disable_tqdm=True)
        except BaseException as error:  # noqa: BLE001 - the test inspects it
            self.error = error

    def wait_for_answers(self, count: int) -> None:
        wait_until(lambda: len(self.recorder.answers) >= count, f"{count} answers")

    def result(self) -> list[float]:
        """Wait for the scores; check that each text was answered exactly once."""
        self._thread.join(120)
        assert self.error is None
        assert self.scores is not None
        assert all(len(answers) == 1 for answers in self.recorder.answers.values())
        assert len(self.recorder.answers) == len(set(self._texts))
        return self.scores

    def failure(self) -> BaseException:
        """Wait for the error that the call raised."""
        self._thread.join(120)
        assert self.error is not None
        return self.error


def describe(lm: BirdieZMQ) -> ModelDescription:
    """Fetch the current description of the model."""
    lm.get_model_info()
    return lm._description


def open_model(endpoint: str, tag: str = "steady", **keywords: Any) -> BirdieZMQ:
    return BirdieZMQ(model_tag=tag, endpoint=endpoint, batch_rows=4, client_settings=SETTINGS, **keywords)


@pytest.fixture(scope="session")
def expected(model_files: Path) -> list[float]:
    """Return the scores of a run without faults. All rows of a step have one shape, so the scores are equal to the bit."""
    model_file = str(model_files / "faulty.py")
    with BirdieZMQ(model_tag="steady", api=model_file, device="cpu", batch_rows=4, client_settings=SETTINGS) as lm:
        return lm.loglikelihood_rolling(requests(TEXTS), disable_tqdm=True)


def model_process(lm: BirdieZMQ) -> psutil.Process:
    return psutil.Process(describe(lm).process_id)


# --- Poison requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["aborts", *(pytest.param(tag, marks=pytest.mark.chaos) for tag in ("hangs", "holds"))])
def test_poison_request_is_isolated_and_all_others_are_answered(
    programs: Programs, model_files: Path, expected: list[float], tag: str
) -> None:
    _, endpoint = programs.broker()
    # A hang at the first step of a process looks like a long compilation, so both timeouts are short.
    timeout_options = {"hangs": ["--step-timeout", "4", "--compile-timeout", "4"], "holds": ["--silence-timeout", "2"]}
    programs.worker(endpoint, model_files / "faulty.py", *timeout_options.get(tag, []))
    texts = [*TEXTS[:5], "the ~~~~ sat on the mat 10 times", *TEXTS[5:]]
    # Isolation by halving is tested only with the fastest fault, because each retry costs a process start.
    settings = SETTINGS if tag == "aborts" else ClientSettings(batch_items=1)
    with BirdieZMQ(model_tag=tag, endpoint=endpoint, batch_rows=4, client_settings=settings) as lm:
        run = Run(lm, texts)
        error = run.failure()
        describe(lm)
        retries = lm._client.retries

    assert isinstance(error, ModelProcessDied)
    assert "document 5 of faults has no answer; 32 of 33 requests were answered" in error.message
    reason = {
        "aborts": "by SIGABRT",
        "hangs": "killed because it made no progress for 4 s",
        "holds": "killed because it sent no heartbeat for 2 s",
    }
    assert reason[tag] in error.message
    assert ("in _inject_fault" in str(error.remote_traceback)) == (tag == "aborts")
    assert retries == (
        6 if tag == "aborts" else 3
    )  # twice in a batch of 8, then in sub-batches of 4 and 2, and twice alone
    assert {text: answers for text, answers in run.recorder.answers.items() if text in TEXTS} == {
        text: [score] for text, score in zip(TEXTS, expected, strict=True)
    }


# --- Models that change -----------------------------------------------------------------------------------------------


def test_model_file_that_changes_during_a_run_ends_the_run(
    programs: Programs, model_files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model_file = tmp_path / "edited_model.py"
    model_file.write_text((model_files / "faulty.py").read_text())
    _, endpoint = programs.broker()
    programs.worker(endpoint, model_file)
    with open_model(endpoint, pause_s=0.2) as lm:
        process = model_process(lm)
        before = lm._description.identity
        run = Run(lm, TEXTS)
        run.wait_for_answers(4)
        model_file.write_text(model_file.read_text().replace("d_model=32", "d_model=16"))
        process.kill()

        error = run.failure()
        assert isinstance(error, ModelChanged)
        assert "edited_model.py" in error.message
        with pytest.raises(ModelChanged):
            lm.loglikelihood_rolling(requests(TEXTS), disable_tqdm=True)
        # lm_eval asks for the model info at the end of a run; a failure here would lose the finished answers.
        assert lm.get_model_info()["model_identity"] == before
        assert "final statistics are not available" in caplog.text
    with open_model(endpoint, pause_s=0.2) as lm:
        assert len(lm.loglikelihood_rolling(requests(TEXTS[:4]), disable_tqdm=True)) == 4


# --- Processes that hang ----------------------------------------------------------------------------------------------


def test_stopped_model_process_is_killed_and_its_requests_retried(
    programs: Programs, model_files: Path, expected: list[float]
) -> None:
    _, endpoint = programs.broker()
    programs.worker(endpoint, model_files / "faulty.py", "--silence-timeout", "2")
    with open_model(endpoint, pause_s=0.2) as lm:
        process = model_process(lm)
        run = Run(lm, TEXTS)
        run.wait_for_answers(8)
        process.send_signal(signal.SIGSTOP)

        assert run.result() == expected
        assert not process.is_running()
        assert lm._client.retries == 1


@pytest.mark.chaos
def test_long_compilation_does_not_count_as_a_stall(
    programs: Programs, model_files: Path, expected: list[float]
) -> None:
    _, endpoint = programs.broker()
    programs.worker(endpoint, model_files / "faulty.py", "--step-timeout", "1", "--compile-timeout", "60")
    with open_model(endpoint, first_call_s=4.0) as lm:
        assert lm.loglikelihood_rolling(requests(TEXTS), disable_tqdm=True) == expected
        assert describe(lm).start_count == 1


@pytest.mark.chaos
def test_requests_of_a_stopped_worker_are_retried_on_another(
    programs: Programs, model_files: Path, expected: list[float]
) -> None:
    _, endpoint = programs.broker()
    first = programs.worker(endpoint, model_files / "faulty.py")
    with open_model(endpoint, pause_s=0.2) as lm:
        describe(lm)
        run = Run(lm, TEXTS)
        run.wait_for_answers(8)
        first.process.send_signal(signal.SIGSTOP)
        programs.worker(endpoint, model_files / "faulty.py")

        assert run.result() == expected
        # When it resumes, it learns that the broker disconnected it, and registers again.
        first.process.send_signal(signal.SIGCONT)
        wait_until(lambda: first.output.count("registered with the broker") == 2, "the return of the stopped worker")


# --- Workers that are killed or join ----------------------------------------------------------------------------------


def test_run_survives_a_killed_worker_and_uses_a_new_one(
    programs: Programs, model_files: Path, expected: list[float]
) -> None:
    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--status-port", "0")
    status_page = broker.wait_for(r"status page at (\S+)")[1]

    def answered_requests() -> dict[int, int]:
        """Return the number of answered requests by process id, for all connected workers."""
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{status_page}status.json") as response:
            return {row["process_id"]: row["requests_answered"] for row in json.load(response)["workers"]}

    first, second = (programs.worker(endpoint, model_files / "faulty.py", "--silence-timeout", "120") for _ in range(2))
    with open_model(endpoint, pause_s=0.4) as lm:
        describe(lm)
        run = Run(lm, TEXTS)
        wait_until(lambda: all(descendants(worker.process.pid) for worker in (first, second)), "two model processes")
        run.wait_for_answers(4)
        # The second stays stopped until the third has answered: otherwise it could finish all requests before the third has loaded.
        (stopped,) = descendants(second.process.pid)
        stopped.send_signal(signal.SIGSTOP)
        first.process.kill()
        wait_until(lambda: first.process.pid not in answered_requests(), "the disconnect of the first worker")
        assert len(run.recorder.answers) < len(TEXTS)
        third = programs.worker(endpoint, model_files / "faulty.py")
        wait_until(lambda: answered_requests().get(third.process.pid, 0) > 0, "an answer of the third worker")
        stopped.send_signal(signal.SIGCONT)

        assert run.result() == expected
        assert lm._client.retries == 1
    assert second.stop() == 0
    assert third.stop() == 0


# --- Graceful shutdown ------------------------------------------------------------------------------------------------


def test_worker_finishes_its_lease_on_sigterm(programs: Programs, model_files: Path, expected: list[float]) -> None:
    _, endpoint = programs.broker()
    first = programs.worker(endpoint, model_files / "faulty.py")
    with open_model(endpoint, pause_s=0.3) as lm:
        describe(lm)
        run = Run(lm, TEXTS)
        run.wait_for_answers(4)
        programs.worker(endpoint, model_files / "faulty.py")

        assert first.stop(signal.SIGTERM) == 0
        assert "for the running lease" in first.output
        assert run.result() == expected
        assert lm._client.retries == 0


def test_broker_drains_leases_on_sigterm_and_its_successor_gets_the_rest(
    programs: Programs, model_files: Path, expected: list[float]
) -> None:
    broker, endpoint = programs.broker()
    programs.worker(endpoint, model_files / "faulty.py")
    with open_model(endpoint, pause_s=0.3) as lm:
        before = describe(lm)
        run = Run(lm, TEXTS)
        run.wait_for_answers(4)

        assert broker.stop(signal.SIGTERM) == 0
        assert "stopping; waiting for" in broker.output
        answered = len(run.recorder.answers)
        assert 8 <= answered < len(TEXTS)
        programs.broker(endpoint)
        assert run.result() == expected
        assert describe(lm).process_id == before.process_id


def test_second_sigterm_stops_the_worker_at_once(programs: Programs, model_files: Path) -> None:
    _, endpoint = programs.broker()
    worker = programs.worker(endpoint, model_files / "faulty.py")
    with open_model(endpoint, pause_s=0.5) as lm:
        process = model_process(lm)
        run = Run(lm, TEXTS[:16])
        run.wait_for_answers(4)
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("for the running lease")
        worker.process.send_signal(signal.SIGTERM)

        assert worker.process.wait(5) == -signal.SIGTERM
        wait_until(lambda: not process.is_running(), "the end of the model process")
        programs.worker(endpoint, model_files / "faulty.py")
        run.result()


# --- Clients that disconnect ------------------------------------------------------------------------------------------


RUN = """
import sys
from lm_eval.api.instance import Instance
from tests.instances import instance
from harness_model import BirdieZMQ
lm = BirdieZMQ(model_tag="steady", endpoint=sys.argv[1], batch_rows=4, pause_s=0.5)
class Hook:
    dbdict = None
    def add_partial(self, kind, arguments, answer): print("answer", flush=True)
lm.set_cache_hook(Hook())
lm.loglikelihood_rolling([instance("loglikelihood_rolling", (f"text {i}",), i) for i in range(200)])
"""


def test_requests_of_a_killed_client_are_cancelled(programs: Programs, model_files: Path) -> None:
    _, endpoint = programs.broker()
    programs.worker(endpoint, model_files / "faulty.py")
    run = programs.start("-c", RUN, endpoint)
    run.wait_for("answer")
    run.process.kill()
    killed_at = time.monotonic()
    with BirdieZMQ(model_tag="steady", endpoint=endpoint, batch_rows=4, pause_s=0.5) as lm:
        steps = describe(lm).report.steps

        # Its 200 requests would take 50 steps and 25 s.
        assert time.monotonic() - killed_at < 10
        assert steps <= 10


def test_interrupted_call_is_cancelled_and_the_next_one_answered(
    programs: Programs, model_files: Path, expected: list[float]
) -> None:
    _, endpoint = programs.broker()
    programs.worker(endpoint, model_files / "faulty.py")
    with open_model(endpoint, pause_s=0.2) as lm:
        describe(lm)
        timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        # Python drops an exception raised in a callback of the garbage collector. JAX and Hypothesis register one in the
        # test process, whose collections take long. The process of a real run has neither.
        gc.disable()
        before = signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # it is ignored in a background job of a shell
        try:
            with pytest.raises(KeyboardInterrupt):
                lm.loglikelihood_rolling(requests(TEXTS * 10), disable_tqdm=True)
        finally:
            signal.signal(signal.SIGINT, before)
            gc.enable()

        assert lm.loglikelihood_rolling(requests(TEXTS), disable_tqdm=True) == expected
        assert describe(lm).report.requests < 5 * len(TEXTS)


def test_worker_names_the_missing_path_of_its_broker_and_connects_once_it_is_back(
    programs: Programs, model_files: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    broker, endpoint = programs.broker(f"ipc://{folder / 'broker'}")
    shutil.rmtree(folder)
    command = ["-m", "workers.jax_worker", "--connect", endpoint, "--api", str(model_files / "letters.py")]
    worker = programs.start(*command, "--device", "cpu")
    worker.wait_for(r"cannot register with the broker: the folder \S+ does not exist")
    assert "so no new peer can connect" in broker.output

    folder.mkdir()

    worker.wait_for("registered with the broker")
    assert "it is bound again, and connected peers stay connected" in broker.output
    assert worker.stop() == 0
    assert broker.stop() == 0

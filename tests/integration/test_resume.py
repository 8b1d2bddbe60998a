"""With ``resume=`` in model_args, a run does not send requests again that were answered before it was killed."""

from __future__ import annotations

import json
import logging
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from birdie_zmq.errors import UsageError
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import Program, Programs, Served

TEXTS = [f"the {word} sat on the mat {count} times" for word in ("cat", "dog", "owl") for count in range(20)]
GREEDY = {"until": ["."], "max_gen_toks": 6}
SAMPLED = {"until": [], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0}


class CountingModel:
    """A model at a shared broker that counts the requests that its model process has received since construction."""

    def __init__(self, served: Served, **model_args: Any) -> None:
        self.lm = BirdieZMQ(**{"model_tag": "pair", "endpoint": served.endpoint, **model_args})
        self._before = self._requests()

    def _requests(self) -> int:
        steps: dict[str, int] = self.lm.get_model_info()["model_steps"]
        return steps["requests"]

    def __enter__(self) -> CountingModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.lm.close()

    @property
    def sent(self) -> int:
        """Number of requests sent to the model process."""
        return self._requests() - self._before

    @property
    def resumed(self) -> int:
        """Number of answers taken from the journal."""
        count: int = self.lm.get_model_info()["model_resumed_answers"]
        return count

    def score_texts(self, texts: list[str]) -> list[float]:
        requests = [instance("loglikelihood_rolling", (text,), i) for i, text in enumerate(texts)]
        return self.lm.loglikelihood_rolling(requests, disable_tqdm=True)

    def score_pairs(self, texts: list[str]) -> list[tuple[float, bool]]:
        requests = [instance("loglikelihood", (text, " and left"), i) for i, text in enumerate(texts)]
        return self.lm.loglikelihood(requests, disable_tqdm=True)

    def generate(self, texts: list[str], gen_kwargs: dict[str, Any]) -> list[str]:
        requests = [instance("generate_until", (text, gen_kwargs), i) for i, text in enumerate(texts)]
        return self.lm.generate_until(requests, disable_tqdm=True)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "answers.journal"


@pytest.mark.parametrize(
    "call",
    [
        lambda model, texts: model.score_texts(texts),
        lambda model, texts: model.score_pairs(texts),
        lambda model, texts: model.generate(texts, GREEDY),
        lambda model, texts: model.generate(texts, SAMPLED),
    ],
    ids=["rolling", "pairs", "greedy", "sampled"],
)
def test_only_requests_without_a_journal_entry_are_sent(
    served: Served,
    journal: Path,
    caplog: pytest.LogCaptureFixture,
    call: Callable[[CountingModel, list[str]], list[Any]],
) -> None:
    caplog.set_level(logging.INFO)
    with CountingModel(served, resume=journal) as first:
        first_answers = call(first, TEXTS[:24])
        assert (first.sent, first.resumed) == (24, 0)
    with CountingModel(served, resume=journal) as second:
        all_answers = call(second, TEXTS[:40])
        assert (second.sent, second.resumed) == (16, 24)
    with CountingModel(served, resume=journal) as third:
        repeated_answers = call(third, TEXTS[:40])
        assert (third.sent, third.resumed) == (0, 40)

    assert repr(all_answers[:24]) == repr(first_answers)
    assert repr(repeated_answers) == repr(all_answers)
    logged = [record.getMessage() for record in caplog.records if "they are reused" in record.getMessage()]
    assert logged == [
        f"{count} of {total} answers are in {journal}; they are reused"
        for count, total in [(0, 24), (24, 40), (40, 40)]
    ]


def test_no_answers_are_reused_without_a_journal(served: Served) -> None:
    with CountingModel(served) as model:
        model.score_texts(TEXTS[:4])
        model.score_texts(TEXTS[:4])
        assert (model.sent, model.resumed) == (8, 0)


def test_models_and_request_kinds_share_the_file_but_no_answers(served: Served, journal: Path) -> None:
    with CountingModel(served, resume=journal, seed=1) as first_model:
        first = first_model.score_texts(TEXTS[:8])
        pairs = first_model.score_pairs(TEXTS[:8])
        assert (first_model.sent, first_model.resumed) == (16, 0)
    with CountingModel(served, resume=journal, seed=2) as second_model:
        second = second_model.score_texts(TEXTS[:8])
        assert (second_model.sent, second_model.resumed) == (8, 0)
    with CountingModel(served, resume=journal, seed=1) as first_model:
        assert first_model.score_texts(TEXTS[:8]) == first
        assert first_model.score_pairs(TEXTS[:8]) == pairs
        assert (first_model.sent, first_model.resumed) == (0, 16)

    assert first != second


def test_equal_requests_are_sent_and_stored_once_and_all_answered(served: Served, journal: Path) -> None:
    repeated = [TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[0]]
    with CountingModel(served, resume=journal) as first:
        answers = first.score_pairs(repeated)
        assert (first.sent, first.resumed) == (2, 0)
    with CountingModel(served, resume=journal) as second:
        assert second.score_pairs([*repeated, TEXTS[2]])[:4] == answers
        assert (second.sent, second.resumed) == (1, 4)

    assert answers[0] == answers[2] == answers[3] != answers[1]
    assert len(journal.read_bytes().splitlines()) == 1 + 3


def test_sampled_repeats_have_separate_journal_entries(served: Served, journal: Path) -> None:
    with CountingModel(served, resume=journal) as first:
        answers = first.generate([TEXTS[0]] * 3, SAMPLED)
        assert first.sent == 3
    with CountingModel(served, resume=journal) as second:
        more = second.generate([TEXTS[0]] * 5, SAMPLED)
        assert (second.sent, second.resumed) == (2, 3)

    assert more[:3] == answers
    assert len(set(more)) == 5


def test_cache_hook_receives_answers_from_the_journal(served: Served, journal: Path) -> None:
    received: list[tuple[str, Any, Any]] = []

    class Hook:
        def add_partial(self, kind: str, arguments: Any, answer: Any) -> None:
            received.append((kind, arguments, answer))

    with CountingModel(served, resume=journal) as first:
        answers = first.score_texts(TEXTS[:3])
    with CountingModel(served, resume=journal) as second:
        second.lm.set_cache_hook(Hook())  # type: ignore[arg-type]
        second.score_texts(TEXTS[:4])

    assert received[:3] == [("loglikelihood_rolling", (text,), a) for text, a in zip(TEXTS[:3], answers, strict=True)]
    assert len(received) == 4


def test_file_that_is_not_a_journal_is_rejected_before_connecting(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.write_text("not for you\n")

    with pytest.raises(UsageError, match="is not a birdie-zmq journal") as caught:
        BirdieZMQ(model_tag="pair", endpoint="tcp://127.0.0.1:9", resume=notes)

    assert str(notes) in caught.value.message
    assert notes.read_text() == "not for you\n"


RUN = """
import json, sys, time
from tests.instances import instance
from birdie_zmq.settings import ClientSettings
from harness_model import BirdieZMQ
from tests.integration.test_resume import GREEDY, TEXTS

class Hook:
    received = 0

    def add_partial(self, kind, arguments, answer):
        self.received += 1
        print("hook received", json.dumps([self.received, arguments[0], answer]), flush=True)
        if self.received == int(sys.argv[4]):
            time.sleep(600)

settings = ClientSettings(connect_s=60, batch_items=8, window=2)
lm = BirdieZMQ(model_tag="pair", api=sys.argv[1], resume=sys.argv[2], client_settings=settings)
lm.set_cache_hook(Hook())
kind = sys.argv[3]
extra_args = {"loglikelihood": (" and left",), "loglikelihood_rolling": (), "generate_until": (GREEDY,)}[kind]
requests = [instance(kind, (text, *extra_args), i) for i, text in enumerate(TEXTS)]
print("answers", json.dumps(getattr(lm, kind)(requests, disable_tqdm=True)), flush=True)
print("sent", lm.get_model_info()["model_steps"]["requests"], flush=True)
"""


@pytest.mark.parametrize(
    ("kind", "answers_before_kill"),
    [
        ("loglikelihood", 1),
        pytest.param("loglikelihood_rolling", 13, marks=pytest.mark.chaos),
        pytest.param("generate_until", 30, marks=pytest.mark.chaos),
    ],
)
def test_killed_run_resumes_from_its_journal(
    programs: Programs, model_files: Path, journal: Path, kind: str, answers_before_kill: int
) -> None:
    def run(path: Path, stop_at: int) -> Program:
        return programs.start("-c", RUN, str(model_files / "letters.py"), str(path), kind, str(stop_at))

    killed = run(journal, answers_before_kill)
    killed.wait_for(rf"hook received \[{answers_before_kill}, .*\n")
    killed.stop(signal.SIGKILL)
    received = [json.loads(line) for line in re.findall(r"hook received (.*)\n", killed.output)]
    stored = journal.read_bytes().count(b"\n") - 1
    with journal.open("ab") as file:
        file.write(b"12345678 [half of a li")

    resumed = run(journal, 0)
    answers = json.loads(resumed.wait_for(r"answers (.*)\n")[1])
    sent = int(resumed.wait_for(r"sent (\d+)\n")[1])
    uninterrupted = run(journal.with_name("uninterrupted.journal"), 0)
    expected = json.loads(uninterrupted.wait_for(r"answers (.*)\n")[1])

    # Every answer that lm_eval had received was in the file.
    assert [number for number, _, _ in received] == list(range(1, answers_before_kill + 1))
    assert sent == len(TEXTS) - stored <= len(TEXTS) - answers_before_kill
    assert all(answers[TEXTS.index(text)] == answer for _, text, answer in received)
    if kind == "generate_until":
        assert answers == expected
    else:
        assert np.allclose(answers, expected, rtol=0, atol=1e-4)
    assert "the last 22 bytes are an incomplete line; removing them" in resumed.output
    assert journal.read_bytes().count(b"\n") == 1 + len(TEXTS)

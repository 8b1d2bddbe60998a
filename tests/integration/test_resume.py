"""With ``resume=`` in model_args, what was answered before a run was killed is not asked again."""

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
from lm_eval.api.instance import Instance

from birdie_zmq.errors import UsageError
from harness_model import BirdieZMQ
from tests.integration.conftest import Program, Programs, Served

TEXTS = [f"the {word} sat on the mat {count} times" for word in ("cat", "dog", "owl") for count in range(20)]
GREEDY = {"until": ["."], "max_gen_toks": 6}
DRAWN = {"until": [], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0}


class Counted:
    """A model at a shared broker, and how many requests have reached its process since this was made."""

    def __init__(self, served: Served, **model_args: Any) -> None:
        self.lm = BirdieZMQ(**{"model_tag": "pair", "endpoint": served.endpoint, **model_args})
        self._before = self._requests()

    def _requests(self) -> int:
        steps: dict[str, int] = self.lm.get_model_info()["model_steps"]
        return steps["requests"]

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *_: object) -> None:
        self.lm.close()

    @property
    def sent(self) -> int:
        return self._requests() - self._before

    @property
    def resumed(self) -> int:
        count: int = self.lm.get_model_info()["model_resumed_answers"]
        return count

    def rolling(self, texts: list[str]) -> list[float]:
        requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
        return self.lm.loglikelihood_rolling(requests, disable_tqdm=True)

    def pairs(self, texts: list[str]) -> list[tuple[float, bool]]:
        requests = [Instance("loglikelihood", {}, (text, " and left"), i) for i, text in enumerate(texts)]
        return self.lm.loglikelihood(requests, disable_tqdm=True)

    def generated(self, texts: list[str], how: dict[str, Any]) -> list[str]:
        requests = [Instance("generate_until", {}, (text, how), i) for i, text in enumerate(texts)]
        return self.lm.generate_until(requests, disable_tqdm=True)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "answers.journal"


@pytest.mark.parametrize(
    "ask",
    [
        lambda asking, texts: asking.rolling(texts),
        lambda asking, texts: asking.pairs(texts),
        lambda asking, texts: asking.generated(texts, GREEDY),
        lambda asking, texts: asking.generated(texts, DRAWN),
    ],
    ids=["rolling", "pairs", "greedy", "drawn"],
)
def test_only_what_is_not_in_the_journal_is_sent(
    served: Served, journal: Path, caplog: pytest.LogCaptureFixture, ask: Callable[[Counted, list[str]], list[Any]]
) -> None:
    caplog.set_level(logging.INFO)
    with Counted(served, resume=journal) as first:
        some = ask(first, TEXTS[:24])
        assert (first.sent, first.resumed) == (24, 0)
    with Counted(served, resume=journal) as second:
        everything = ask(second, TEXTS[:40])
        assert (second.sent, second.resumed) == (16, 24)
    with Counted(served, resume=journal) as third:
        again = ask(third, TEXTS[:40])
        assert (third.sent, third.resumed) == (0, 40)

    assert repr(everything[:24]) == repr(some)
    assert repr(again) == repr(everything)
    said = [record.getMessage() for record in caplog.records if "from before" in record.getMessage()]
    assert said == [
        f"{count} of {of} answers are in {journal} from before" for count, of in [(0, 24), (24, 40), (40, 40)]
    ]


def test_without_a_journal_nothing_is_resumed(served: Served) -> None:
    with Counted(served) as asking:
        asking.rolling(TEXTS[:4])
        asking.rolling(TEXTS[:4])
        assert (asking.sent, asking.resumed) == (8, 0)


def test_models_and_kinds_share_the_file_and_no_answer(served: Served, journal: Path) -> None:
    with Counted(served, resume=journal, seed=1) as one:
        first = one.rolling(TEXTS[:8])
        pairs = one.pairs(TEXTS[:8])
        assert (one.sent, one.resumed) == (16, 0)
    with Counted(served, resume=journal, seed=2) as other:
        second = other.rolling(TEXTS[:8])
        assert (other.sent, other.resumed) == (8, 0)
    with Counted(served, resume=journal, seed=1) as one:
        assert one.rolling(TEXTS[:8]) == first
        assert one.pairs(TEXTS[:8]) == pairs
        assert (one.sent, one.resumed) == (0, 16)

    assert first != second


def test_equal_requests_are_sent_and_kept_once_and_all_answered(served: Served, journal: Path) -> None:
    twice = [TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[0]]
    with Counted(served, resume=journal) as first:
        answers = first.pairs(twice)
        assert (first.sent, first.resumed) == (2, 0)
    with Counted(served, resume=journal) as second:
        assert second.pairs([*twice, TEXTS[2]])[:4] == answers
        assert (second.sent, second.resumed) == (1, 4)

    assert answers[0] == answers[2] == answers[3] != answers[1]
    assert len(journal.read_bytes().splitlines()) == 1 + 3


def test_repeats_that_are_drawn_stay_apart(served: Served, journal: Path) -> None:
    with Counted(served, resume=journal) as first:
        answers = first.generated([TEXTS[0]] * 3, DRAWN)
        assert first.sent == 3
    with Counted(served, resume=journal) as second:
        more = second.generated([TEXTS[0]] * 5, DRAWN)
        assert (second.sent, second.resumed) == (2, 3)

    assert more[:3] == answers
    assert len(set(more)) == 5


def test_what_the_journal_answers_reaches_the_cache_hook_too(served: Served, journal: Path) -> None:
    heard: list[tuple[str, Any, Any]] = []

    class Hook:
        def add_partial(self, kind: str, arguments: Any, answer: Any) -> None:
            heard.append((kind, arguments, answer))

    with Counted(served, resume=journal) as first:
        answers = first.rolling(TEXTS[:3])
    with Counted(served, resume=journal) as second:
        second.lm.set_cache_hook(Hook())  # type: ignore[arg-type]
        second.rolling(TEXTS[:4])

    assert heard[:3] == [("loglikelihood_rolling", (text,), a) for text, a in zip(TEXTS[:3], answers, strict=True)]
    assert len(heard) == 4


def test_a_file_that_is_no_journal_ends_the_run_before_anything_is_started(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.write_text("not for you\n")

    with pytest.raises(UsageError, match="is no journal") as caught:
        BirdieZMQ(model_tag="pair", endpoint="tcp://127.0.0.1:9", resume=notes)

    assert str(notes) in caught.value.message
    assert notes.read_text() == "not for you\n"


KILLED = """
import json, sys, time
from lm_eval.api.instance import Instance
from birdie_zmq.settings import ClientSettings
from harness_model import BirdieZMQ
from tests.integration.test_resume import GREEDY, TEXTS

class Hook:
    heard = 0

    def add_partial(self, kind, arguments, answer):
        self.heard += 1
        print("heard", json.dumps([self.heard, arguments[0], answer]), flush=True)
        if self.heard == int(sys.argv[4]):
            time.sleep(600)

settings = ClientSettings(connect_s=60, batch_items=8, window=2)
lm = BirdieZMQ(model_tag="pair", api=sys.argv[1], resume=sys.argv[2], client_settings=settings)
lm.set_cache_hook(Hook())
kind = sys.argv[3]
how = {"loglikelihood": (" and left",), "loglikelihood_rolling": (), "generate_until": (GREEDY,)}[kind]
requests = [Instance(kind, {}, (text, *how), i) for i, text in enumerate(TEXTS)]
print("answers", json.dumps(getattr(lm, kind)(requests, disable_tqdm=True)), flush=True)
print("sent", lm.get_model_info()["model_steps"]["requests"], flush=True)
"""


@pytest.mark.parametrize(
    ("kind", "till"),
    [
        ("loglikelihood", 1),
        pytest.param("loglikelihood_rolling", 13, marks=pytest.mark.chaos),
        pytest.param("generate_until", 30, marks=pytest.mark.chaos),
    ],
)
def test_a_killed_run_goes_on_where_it_was(
    programs: Programs, pages: Path, journal: Path, kind: str, till: int
) -> None:
    def run(path: Path, stop_at: int) -> Program:
        return programs.start("-c", KILLED, str(pages / "letters.py"), str(path), kind, str(stop_at))

    killed = run(journal, till)
    killed.wait_for(rf"heard \[{till}, .*\n")
    killed.stop(signal.SIGKILL)
    heard = [json.loads(line) for line in re.findall(r"heard (.*)\n", killed.output)]
    whole = journal.read_bytes().count(b"\n") - 1
    with journal.open("ab") as torn:
        torn.write(b"12345678 [half of a li")

    resumed = run(journal, 0)
    answers = json.loads(resumed.wait_for(r"answers (.*)\n")[1])
    sent = int(resumed.wait_for(r"sent (\d+)\n")[1])
    undisturbed = run(journal.with_name("other"), 0)
    expected = json.loads(undisturbed.wait_for(r"answers (.*)\n")[1])

    # Whatever lm_eval had been told of was in the file.
    assert [number for number, _, _ in heard] == list(range(1, till + 1))
    assert sent == len(TEXTS) - whole <= len(TEXTS) - till
    assert all(answers[TEXTS.index(text)] == answer for _, text, answer in heard)
    if kind == "generate_until":
        assert answers == expected
    else:
        assert np.allclose(answers, expected, rtol=0, atol=1e-4)
    assert "the last 22 bytes are half of a line, and are cut off" in resumed.output
    assert journal.read_bytes().count(b"\n") == 1 + len(TEXTS)

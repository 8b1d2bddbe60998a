"""A model of this process: its answers, its errors, and the replacement of its weights."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from lm_eval.api.instance import Instance

from birdie_zmq import Model
from birdie_zmq.engine.model_api import CheckpointFingerprint
from birdie_zmq.errors import ModelCallError, TokenizerError, TokenOutOfVocabulary, UsageError
from harness_model import BirdieZMQ
from tests.instances import instance

VOCABULARY, BOS = 257, 256


class Bytes:
    bos_token_id = BOS

    def encode(self, text: str) -> list[int]:
        return [999 if byte == ord("!") else byte for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("latin-1")


def table(seed: int) -> Any:
    return jax.random.normal(jax.random.key(seed), (VOCABULARY, VOCABULARY))


def bigram(params: Any, tokens: Any) -> Any:
    return params[tokens]


def in_process_model(params: Any = None, **more: Any) -> BirdieZMQ:
    return BirdieZMQ(model=(bigram, table(0) if params is None else params), tokenizer=Bytes(), **more)


def requests(*pairs: tuple[str, str]) -> list[Instance]:
    return [instance("loglikelihood", pair, number) for number, pair in enumerate(pairs)]


def scores(lm: BirdieZMQ, *pairs: tuple[str, str]) -> list[tuple[float, bool]]:
    return lm.loglikelihood(requests(*pairs), disable_tqdm=True)


def reference_score(params: Any, context: str, continuation: str) -> tuple[float, bool]:
    ids = [*(context.encode() or [BOS]), *continuation.encode()]
    rows = np.asarray(params, np.float64)[ids[-len(continuation) - 1 : -1]]
    targets = np.array(ids[-len(continuation) :])
    chosen = rows[np.arange(len(targets)), targets] - np.log(np.exp(rows).sum(-1))
    return pytest.approx(chosen.sum(), abs=1e-4), bool((rows.argmax(-1) == targets).all())  # type: ignore[return-value]


PAIRS = [("ab", "cd"), ("", "abc"), ("a longer context", "x")]


def test_in_process_model_starts_no_process() -> None:
    others = psutil.Process().children()  # for instance processes that tests share
    with in_process_model() as lm:
        assert scores(lm, *PAIRS) == [reference_score(table(0), *pair) for pair in PAIRS]
        (rolled,) = lm.loglikelihood_rolling([instance("loglikelihood_rolling", ("abc",), 0)], disable_tqdm=True)
        assert rolled == reference_score(table(0), "", "abc")[0]
        request = instance("generate_until", ("a", {"until": [], "max_gen_toks": 2, "do_sample": False}), 0)
        (text,) = lm.generate_until([request], disable_tqdm=True)
        first = int(table(0)[ord("a"), :256].argmax())
        assert text[0] == chr(first)
        assert psutil.Process().children() == others
        info = lm.get_model_info()
    assert info["model_tag"] == "in-process"
    assert info["model_engine"] == "jax"
    assert info["model_num_parameters"] == VOCABULARY**2


def test_update_replaces_weights_without_recompiling() -> None:
    with in_process_model() as lm:
        scores(lm, *PAIRS)
        compiled_s = lm.get_model_info()["model_steps"]["compile_seconds"]
        identity = lm.get_model_info()["model_identity"]
        lm.update(table(1))
        assert scores(lm, *PAIRS) == [reference_score(table(1), *pair) for pair in PAIRS]
        lm.update(np.asarray(table(2)))
        assert scores(lm, *PAIRS) == [reference_score(table(2), *pair) for pair in PAIRS]
        assert lm.get_model_info()["model_steps"]["compile_seconds"] == compiled_s
        assert lm.get_model_info()["model_identity"] != identity
        with pytest.raises(UsageError, match="differ from the current ones"):
            lm.update(table(1)[:, :-1])
        with pytest.raises(UsageError, match="differ from the current ones"):
            lm.update({"table": table(1)})
        assert scores(lm, *PAIRS) == [reference_score(table(2), *pair) for pair in PAIRS]


def test_update_recompiles_for_another_sharding() -> None:
    """As in a loop that moves the weights to another device or sharding."""
    mesh = jax.make_mesh((1,), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())  # type: ignore[no-untyped-call]
    with in_process_model() as lm:
        scores(lm, *PAIRS)
        lm.update(jax.device_put(table(1), everywhere))
        assert scores(lm, *PAIRS) == [reference_score(table(1), *pair) for pair in PAIRS]


def test_update_clears_the_prefix_cache() -> None:
    """Cached prefixes persist across calls; their states depend on the weights."""
    from tests.engine.recurrent import init_params, logits, recurrent

    class Letters(Bytes):
        bos_token_id = 0

        def encode(self, text: str) -> list[int]:
            return [ord(letter) % 32 for letter in text]

    context = "abcdefgh" * 20
    pairs = [(context + letter, "de") for letter in "abc"]

    def alone(params: Any, context: str, continuation: str) -> Any:
        ids = Letters().encode(context + continuation)
        rows = np.asarray(jax.nn.log_softmax(logits(params, jnp.array([ids[:-1]]))[0]), np.float64)
        return pytest.approx(sum(rows[-2:][np.arange(2), ids[-2:]]), abs=1e-4)

    with BirdieZMQ(model=recurrent(), tokenizer=Letters()) as lm:
        for seed in (0, 1):
            lm.update(init_params(seed))
            for _ in range(2):
                assert [s for s, _ in scores(lm, *pairs)] == [alone(init_params(seed), *pair) for pair in pairs]


def test_update_without_params_changes_the_identity() -> None:
    weights = {"now": table(0)}
    with BirdieZMQ(model=lambda tokens: weights["now"][tokens], tokenizer=Bytes()) as lm:
        before = lm.get_model_info()["model_identity"]
        assert scores(lm, PAIRS[0]) == [reference_score(table(0), *PAIRS[0])]
        weights["now"] = table(1)
        lm.update()
        assert scores(lm, PAIRS[0]) == [reference_score(table(1), *PAIRS[0])]
        assert lm.get_model_info()["model_identity"] != before


def test_one_failed_request_does_not_affect_others() -> None:
    cached: list[Any] = []

    class Hook:
        def add_partial(self, kind: str, arguments: Any, answer: Any) -> None:
            cached.append(arguments)

    with in_process_model() as lm:
        lm.set_cache_hook(Hook())  # type: ignore[arg-type]
        with pytest.raises(
            TokenOutOfVocabulary, match=r"request 1 has no answer; 3 of 4 requests were answered.*token 999"
        ):
            scores(lm, PAIRS[0], ("a!", "b"), *PAIRS[1:])
        assert sorted(cached) == sorted(PAIRS)
        with pytest.raises(TokenOutOfVocabulary, match="and 1 more failed"):
            scores(lm, ("a!", "b"), ("b!", "c"))
        assert scores(lm, PAIRS[0]) == [reference_score(table(0), *PAIRS[0])], "the next call succeeds"


def test_model_exception_is_the_cause_of_the_error() -> None:
    calls = [0]

    def breaks(tokens: Any) -> Any:
        calls[0] += 1
        if calls[0] > 1:
            raise KeyError("no such layer")
        return table(0)[tokens]

    with BirdieZMQ(model=breaks, tokenizer=Bytes()) as lm:
        with pytest.raises(ModelCallError, match="KeyError") as failure:
            scores(lm, PAIRS[0])
        assert isinstance(failure.value.__cause__, KeyError)


def test_resume_needs_a_fingerprint_in_process(tmp_path: Path) -> None:
    journal = tmp_path / "answers.journal"

    def named(fingerprint: str | None, seed: int) -> BirdieZMQ:
        model = Model(params=table(seed), logits=bigram, fingerprint=fingerprint)
        return BirdieZMQ(model=model, tokenizer=Bytes(), resume=str(journal))

    with pytest.raises(UsageError, match="fingerprint"):
        named(None, 0)
    with named("step 1", 0) as lm:
        first = scores(lm, *PAIRS)
    with named("step 1", 0) as lm:
        assert scores(lm, *PAIRS) == first
        assert lm.get_model_info()["model_resumed_answers"] == len(PAIRS)
        with pytest.raises(UsageError, match="needs a fingerprint"):
            lm.update(table(1))
        lm.update(table(1), fingerprint="step 2")
        assert scores(lm, *PAIRS) == [reference_score(table(1), *pair) for pair in PAIRS]
        assert lm.get_model_info()["model_resumed_answers"] == len(PAIRS)


def test_fingerprint_of_a_checkpoint_does_not_identify_weights_that_may_have_been_trained(tmp_path: Path) -> None:
    loaded = Model(params=table(0), logits=bigram, fingerprint=CheckpointFingerprint("of the files"))
    with pytest.raises(UsageError, match="fingerprint"):
        BirdieZMQ(model=loaded, tokenizer=Bytes(), resume=str(tmp_path / "answers.journal"))
    identities = set()
    for _ in range(2):
        with BirdieZMQ(model=loaded, tokenizer=Bytes()) as lm:
            identities.add(lm.get_model_info()["model_identity"])
    assert len(identities) == 2


def test_calls_from_threads_are_serialized() -> None:
    with in_process_model() as lm:
        found: dict[int, Any] = {}

        def ask(number: int) -> None:
            found[number] = scores(lm, *PAIRS)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(found[number] == [reference_score(table(0), *pair) for pair in PAIRS] for number in range(4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "demo"}, "pass model_tag=demo"),
        ({"model": (bigram, None)}, "needs tokenizer="),
        ({"model": (bigram, None), "tokenizer": Bytes(), "port": 5555}, "port cannot be used with model="),
        ({"model": (bigram, None), "tokenizer": Bytes(), "api": "api.py"}, "api cannot be used with model="),
        ({"model": (bigram, None), "tokenizer": Bytes(), "device": "cuda:0"}, "device cannot be used with model="),
        ({"model": (bigram, None), "tokenizer": Bytes(), "max_length": 0}, "max_length=0"),
        ({"model": (bigram, None), "tokenizer": Bytes(), "engine": "tensorflow"}, "there is no engine"),
    ],
)
def test_arguments_of_other_processes_are_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BirdieZMQ(**arguments)


def test_invalid_tokenizer_is_rejected() -> None:
    with pytest.raises(TokenizerError, match="without encode"):
        BirdieZMQ(model=(bigram, table(0)), tokenizer=object())


def test_closed_model_raises_usage_error() -> None:
    lm = in_process_model()
    lm.close()
    lm.close()
    with pytest.raises(UsageError, match="has been closed"):
        scores(lm, PAIRS[0])


def test_progress_bar_shows_throughput_in_process(capsys: pytest.CaptureFixture[str]) -> None:
    with in_process_model() as lm:
        lm.loglikelihood(requests(*((f"context {number}", "so") for number in range(8))))
    last = capsys.readouterr().err.rpartition("\r")[2]
    assert re.search(r"8/8 \[\d\d:\d\d, [\d,]+ tokens/s, \d+% padding, \d+% distinct\]", last)


def test_a_disabled_progress_bar_asks_for_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    with in_process_model() as lm:
        asked: list[object] = []
        stream = lm._client.stream

        def recording_stream(jobs: Any, *, with_progress: bool = False) -> Any:
            asked.append(with_progress)
            return stream(jobs, with_progress=with_progress)

        monkeypatch.setattr(lm._client, "stream", recording_stream)
        for disable in (True, False):
            lm.loglikelihood(requests(PAIRS[0]), disable_tqdm=disable)
    assert asked == [False, True]

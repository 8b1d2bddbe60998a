"""Workers and model processes that are killed while ``birdie-zmq serve`` answers; run by tox -e clients."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.integration.conftest import Programs, wait_until
from tests.integration.serving import TEXT, Server

pytestmark = pytest.mark.clients

SERVE = ("-m", "birdie_zmq", "serve", "--port", "0", "--model_args", "model_tag=demo")


@pytest.fixture
def server(programs: Programs) -> Iterator[Server]:
    made = Server(programs.start(*SERVE, "--device", "cpu"))
    yield made
    made.http.close()


def test_a_model_process_that_is_killed_costs_no_request(server: Server) -> None:
    request = {"max_tokens": 48, "temperature": 0, "logit_bias": {"2": -100}}  # 2 is EOS
    prompts = [f"{TEXT} {word}" for word in ("house", "river", "garden", "tree", "hill", "bridge")]
    before = [server.complete(prompt=prompt, **request)[0]["text"] for prompt in prompts[:2]]
    victim = server.model_process()

    with ThreadPoolExecutor(len(prompts)) as pool:
        begun = threading.Barrier(len(prompts) + 1)

        def ask(prompt: str) -> Any:
            begun.wait()
            return server.complete(prompt=prompt, **request)[0]

        answers = [pool.submit(ask, prompt) for prompt in prompts]
        begun.wait()
        os.kill(victim.pid, signal.SIGKILL)
        texts = [answer.result()["text"] for answer in answers]

    assert texts[:2] == before
    assert server.model_process().pid != victim.pid
    assert server.http.get(server.root + "/health").status_code == 200


def test_a_worker_of_several_that_is_killed_costs_no_request(programs: Programs) -> None:
    broker, endpoint = programs.broker()
    workers = [
        programs.start("-m", "birdie_zmq", "worker", "--connect", endpoint, "--built-in", "--device", "cpu")
        for _ in range(2)
    ]
    for worker in workers:
        worker.wait_for("registered with the broker")
    server = Server(programs.start(*SERVE, "--endpoint", endpoint))
    prompts = [f"{TEXT} {word} {count}" for word in ("house", "river", "garden", "tree") for count in range(30)]
    scoring = {"max_tokens": 0, "echo": True, "logprobs": 1}
    generation = {"max_tokens": 48, "temperature": 0, "logit_bias": {"2": -100}}

    def ask(number: int) -> Any:
        return server.complete(prompt=prompts[number], **(generation if number % 10 == 0 else scoring))[0]

    with server.http, ThreadPoolExecutor(24) as pool:
        expected = list(pool.map(ask, range(len(prompts))))
        answers = [pool.submit(ask, number) for number in range(len(prompts))]
        wait_until(lambda: sum(answer.done() for answer in answers) >= 40, "the first answers")
        workers[0].process.kill()
        choices = [answer.result() for answer in answers]

    broker.wait_for("disconnected")
    for choice, before in zip(choices, expected, strict=True):
        assert choice["text"] == before["text"]
        if (scores := choice["logprobs"]) is not None:
            assert scores["token_logprobs"][1:] == pytest.approx(before["logprobs"]["token_logprobs"][1:], abs=1e-4)

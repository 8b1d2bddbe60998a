"""``birdie-zmq serve`` with its own broker and worker, as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from tests.integration.conftest import Program, Programs, alive, descendants

TEXT = "The cat sat on the mat. The dog ran to the"


class Server:
    """A server, and a client of it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.url = program.wait_for(r"serving demo at (http://\S+)")[1]
        program.wait_for("loaded demo in")
        self.http = httpx.Client(base_url=self.url, timeout=240)

    def complete(self, **content: Any) -> Any:
        response = self.http.post("/completions", json=content)
        assert response.status_code == 200, response.text
        return response.json()["choices"]

    def model_process(self) -> psutil.Process:
        """Return the newest process: that of the model."""
        return max(descendants(self.program.process.pid), key=lambda process: process.create_time())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    programs = Programs(tmp_path_factory.mktemp("serve"))
    command = ["-m", "birdie_zmq", "serve", "--port", "0", "--model_args", "model_tag=demo", "--device", "cpu"]
    made = Server(programs.start(*command))
    yield made
    made.http.close()
    processes = descendants(made.program.process.pid)
    status = made.program.stop()
    programs.end()
    assert status == 0
    assert not alive(processes)
    assert "cat sat" not in made.program.output


def test_scores_of_a_prompt_do_not_depend_on_how_it_is_asked_for(server: Server) -> None:
    whole, begun = server.complete(
        prompt=[TEXT, TEXT[:23]], max_tokens=1, temperature=0, logprobs=1, echo=True, model="demo"
    )
    tokens = server.http.post(server.url.removesuffix("v1") + "tokenize", json={"prompt": TEXT}).json()["tokens"]
    (by_ids,) = server.complete(prompt=tokens, max_tokens=0, temperature=0, logprobs=5, echo=True)

    scores = whole["logprobs"]["token_logprobs"]
    assert len(scores) == len(tokens) + 1
    assert scores[0] is None
    assert "".join(whole["logprobs"]["tokens"]) == whole["text"]
    shared = len(begun["logprobs"]["tokens"]) - 1
    assert begun["logprobs"]["token_logprobs"][1:shared] == pytest.approx(scores[1:shared], abs=1e-4)
    assert by_ids["logprobs"]["token_logprobs"][1:] == pytest.approx(scores[1:-1], abs=1e-4)
    for own, top in zip(scores[1:], whole["logprobs"]["top_logprobs"][1:], strict=True):
        assert own <= max(top.values())


def test_a_stream_gives_the_text_of_the_whole_answer(server: Server) -> None:
    request = {"prompt": TEXT, "max_tokens": 24, "temperature": 0}
    (whole,) = server.complete(**request)

    with server.http.stream("POST", "/completions", json={**request, "stream": True}) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]

    assert lines[-1] == "[DONE]"
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    assert choices[-1]["finish_reason"] == whole["finish_reason"]


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
    assert server.http.get(server.url.removesuffix("v1") + "health").status_code == 200


def test_other_addresses_are_refused_without_a_key(programs: Programs) -> None:
    program = programs.start("-m", "birdie_zmq", "serve", "--host", "0.0.0.0", "--model_args", "model_tag=demo")

    assert program.process.wait(60) == 2
    assert "needs an API key" in program.output

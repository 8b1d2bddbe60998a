"""``birdie-zmq serve`` with its own broker and worker, as a user starts it; tests/clients has what takes longer."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.integration.conftest import Programs, alive, descendants
from tests.integration.serving import TEXT, Server


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
    tokens = server.http.post(server.root + "/tokenize", json={"prompt": TEXT}).json()["tokens"]
    computed = server.metric("tokens_computed_total")
    (by_ids,) = server.complete(prompt=tokens, max_tokens=0, temperature=0, logprobs=5, echo=True)
    assert server.metric("tokens_computed_total") > computed

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

"""The routes with a model that a test decides on: requests, answers, refusals, streams and cancellation."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from birdie_zmq.client.actions import ReportProgress
from birdie_zmq.client.collector import CallEvent
from birdie_zmq.client.job import Job
from birdie_zmq.client.progress import Progress
from birdie_zmq.errors import ModelCallError, WorkerUnavailable
from birdie_zmq.serve.access import ApiKey
from birdie_zmq.serve.app import ServeApp
from birdie_zmq.serve.dispatcher import Dispatcher
from birdie_zmq.serve.settings import ServeSettings
from birdie_zmq.types import ComputeCounters
from tests.serve.fakes import ANSWER, MAX_LENGTH, FakeClient, FakeConnection, answering, failing, until

SETTINGS = ServeSettings(collect_s=1e-4, probe_s=60.0)
KEY = "k" * 32
SECRET = "the secret of this prompt"


class Server:
    """The application with its lanes, and a client of it."""

    def __init__(self, settings: ServeSettings = SETTINGS, key: str | None = None) -> None:
        self.connection = FakeConnection()
        self.scoring, self.generation = FakeClient(), FakeClient()
        clients = iter([self.scoring, self.generation])
        self.dispatcher = Dispatcher(lambda: next(clients), settings, self.connection)
        api_key = None if key is None else ApiKey.of(key)
        connection: Any = self.connection
        app = ServeApp(connection, self.dispatcher, settings, api_key, ("tiny", "alias"))
        self.http = TestClient(app.starlette(), base_url="http://localhost")
        self.dispatcher.start()

    def post(self, path: str, **content: Any) -> Any:
        return self.http.post(path, json=content)

    def complete(self, **content: Any) -> Any:
        response = self.post("/v1/completions", **content)
        assert response.status_code == 200, response.text
        return response.json()

    def refusal(self, path: str = "/v1/completions", **content: Any) -> tuple[int, str]:
        """Return the status and the message of a refused request."""
        response = self.post(path, **content)
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return response.status_code, error["message"]


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.dispatcher.close()


# --- Completions ------------------------------------------------------------------------------------------------------


def test_the_request_of_lm_eval_has_a_log_probability_for_each_token_and_one_more(server: Server) -> None:
    answer = server.complete(
        model="tiny", prompt=[97, 98, 99], temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True
    )

    (choice,) = answer["choices"]
    assert choice["text"] == "abc "
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c", " "],
        "text_offset": [0, 1, 2, 3],
        "token_logprobs": [None, -1.0, -2.0, -1.0],
        "top_logprobs": [None, *({"\0": -0.5, token: value} for token, value in (("b", -1), ("c", -2), (" ", -1)))],
    }
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    assert answer["object"] == "text_completion"
    assert server.generation.calls == []


def test_prompts_of_one_request_are_answered_in_their_order(server: Server) -> None:
    for prompt in (["b", "a"], [[98], [97]]):
        answer = server.complete(prompt=prompt, max_tokens=2, n=2, echo=True, temperature=0)

        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        assert [choice["text"] for choice in answer["choices"]] == ["b y", "b y", "a y", "a y"]
        assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10}


def test_prompt_logprobs_have_the_form_of_vllm(server: Server) -> None:
    answer = server.complete(prompt="ab", max_tokens=0, prompt_logprobs=1)

    assert answer["choices"][0]["prompt_logprobs"] == [
        None,
        {
            "0": {"logprob": -0.5, "rank": 1, "decoded_token": "\0"},
            "98": {"logprob": -1.0, "rank": None, "decoded_token": "b"},
        },
    ]


def test_samples_with_a_seed_have_the_same_keys_and_others_do_not(server: Server) -> None:
    for seed in (7, 7, None, None):
        server.complete(prompt="a", max_tokens=2, n=2, seed=seed)

    keys = [[prompt.key for prompt in call] for call in server.generation.prompts]
    assert keys[0] == keys[1]
    assert len({key for call in keys[1:] for key in call}) == 6


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        ({}, 400, "prompt is missing"),
        ({"prompt": []}, 400, "empty list"),
        ({"prompt": [[]]}, 400, "empty list of token ids"),
        ({"prompt": ["a", 1]}, 400, "prompt must be a text"),
        ({"prompt": [1, "a"]}, 400, "other than token ids"),
        ({"prompt": [True]}, 400, "other than token ids"),
        ({"prompt": {"a": 1}}, 400, "prompt must be a text"),
        ({"prompt": [256]}, 400, "has the token 256"),
        ({"prompt": [-1]}, 400, "has the token -1"),
        ({"prompt": [10**40]}, 400, "has the token a number"),
        ({"prompt": [1] * (MAX_LENGTH + 1)}, 400, "maximum context length"),
        ({"prompt": "\ud800"}, 400, "not valid JSON"),
        ({"prompt": "a", "model": "other"}, 404, "it serves tiny, alias"),
        ({"prompt": "a", "max_tokens": -1}, 400, "max_tokens is invalid"),
        ({"prompt": "a", "max_tokens": 1.5}, 400, "max_tokens is invalid"),
        ({"prompt": "a", "max_tokens": 1, "max_completion_tokens": 2}, 400, "mean the same"),
        ({"prompt": "a", "logprobs": 21}, 400, "logprobs is invalid"),
        ({"prompt": "a", "logprobs": True}, 400, "logprobs is invalid"),
        ({"prompt": "a", "temperature": -1}, 400, "sampling parameters"),
        ({"prompt": "a", "top_p": 0}, 400, "sampling parameters"),
        ({"prompt": "a", "top_p": 0, "temperature": 0}, 400, "sampling parameters"),
        ({"prompt": "a", "n": 0}, 400, "n is invalid"),
        ({"prompt": "a", "n": 10**6}, 400, "over the limit"),
        ({"prompt": "a", "stop": 1}, 400, "stop is invalid"),
        ({"prompt": "a", "seed": 2**63}, 400, "64 bits"),
        ({"prompt": "a", "best_of": 2}, 400, "best_of is not supported"),
        ({"prompt": "a", "suffix": "b"}, 400, "suffix is not supported"),
        ({"prompt": "a", "guided_json": {}}, 400, "'guided_json' is unknown"),
        ({"prompt": "a", "logit_bias": {"256": 1}}, 400, "tokens only"),
        ({"prompt": "a", "stream": True, "echo": True}, 400, "stream cannot be used with echo"),
        ({"prompt": "a", "stream_options": {"x": 1}}, 400, "'x' is unknown"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_an_invalid_request_is_refused_with_the_reason(
    server: Server, content: dict[str, Any], status: int, message: str
) -> None:
    body = json.dumps(content).encode()  # escapes a lone surrogate
    response = server.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})

    assert response.status_code == status
    assert message in response.json()["error"]["message"]
    assert server.scoring.calls == server.generation.calls == []


def test_the_reason_why_a_worker_refuses_a_prompt_is_shown(server: Server) -> None:
    from birdie_zmq.client.actions import Deliver
    from birdie_zmq.completions import Completion

    server.scoring.scripts = [lambda jobs: (event for event in [Deliver([0], [Completion(error="it is too long")])])]

    assert server.refusal(prompt="a", max_tokens=1) == (400, "it is too long")


# --- Chat, tokens, models ---------------------------------------------------------------------------------------------


def test_a_conversation_is_rendered_and_answered(server: Server) -> None:
    answer = server.post(
        "/v1/chat/completions",
        model="alias",
        messages=[{"role": "user", "content": [{"type": "text", "text": "Is it?"}]}],
        max_tokens=4,
        temperature=0,
        logprobs=True,
        top_logprobs=1,
    ).json()

    (prompt,) = server.generation.prompts[0]
    assert prompt.text == "user: Is it?\nassistant:"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": " yes", "refusal": None}
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == list(" yes")
    assert choice["logprobs"]["content"][1]["top_logprobs"] == [{"token": "\0", "logprob": -0.5, "bytes": [0]}]
    assert (answer["object"], answer["model"]) == ("chat.completion", "alias")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "messages are invalid"),
        ({"messages": []}, "messages are invalid"),
        ({"messages": [{"content": "a"}]}, "messages are invalid"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "only messages of text",
        ),
        ({"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "tools is not supported"),
        ({"messages": [{"role": "user", "content": "a"}], "max_tokens": 0}, "at least 1"),
        ({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 1}, "needs logprobs=true"),
        ({"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}}, "not supported"),
    ],
)
def test_an_invalid_conversation_is_refused(server: Server, content: dict[str, Any], message: str) -> None:
    status, found = server.refusal("/v1/chat/completions", **content)
    assert (status, message in found) == (400, True)


def test_texts_become_tokens_and_tokens_texts(server: Server) -> None:
    found = server.post("/tokenize", prompt="ab", return_token_strs=True).json()
    assert found == {"count": 2, "max_model_len": MAX_LENGTH, "tokens": [97, 98], "token_strs": ["a", "b"]}
    assert server.post("/detokenize", tokens=[97, 98]).json() == {"prompt": "ab"}
    assert server.post("/tokenize", messages=[{"role": "u", "content": ""}]).json()["count"] == 14
    assert server.http.get("/tokenizer_info").json()["eos_token_id"] == 0


def test_models_are_listed_and_unknown_routes_are_errors_of_the_same_form(server: Server) -> None:
    models = server.http.get("/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["tiny", "alias"]
    for method, path, status in (("GET", "/", 404), ("GET", "/v1/completions", 405), ("POST", "/health", 405)):
        response = server.http.request(method, path)
        assert (response.status_code, response.json()["error"]["code"]) == (status, "route")


def test_metrics_count_responses_and_calls(server: Server) -> None:
    server.complete(prompt="a", max_tokens=1)
    server.refusal(prompt=1)

    text = server.http.get("/metrics").text

    assert 'birdie_zmq_serve_responses_total{route="/v1/completions",status="200"} 1.0' in text
    assert 'birdie_zmq_serve_responses_total{route="/v1/completions",status="400"} 1.0' in text
    assert 'birdie_zmq_serve_prompts_total{lane="scoring"} 1.0' in text
    assert "birdie_zmq_serve_requests 0.0" in text


def test_metrics_have_the_tokens_of_an_answer_once_it_is_there(server: Server) -> None:
    def computing(jobs: list[Job]) -> Generator[CallEvent, None, None]:
        yield ReportProgress(ComputeCounters(tokens=8, padding=3, generated=1, distinct=5))
        yield from answering(jobs)

    server.scoring.scripts, server.generation.scripts = [computing], [computing]
    server.complete(prompt="a", max_tokens=1)
    server.complete(prompt="a", max_tokens=2)

    text = server.http.get("/metrics").text

    for name, value in (("computed", 16), ("padding", 6), ("generated", 2), ("distinct", 10)):
        assert f"birdie_zmq_serve_tokens_{name}_total {value}.0" in text


# --- Streams ----------------------------------------------------------------------------------------------------------


def events_of(response: Any) -> list[Any]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_stream_has_each_token_once_with_its_log_probability(server: Server) -> None:
    response = server.post(
        "/v1/completions", prompt="a", max_tokens=4, stream=True, logprobs=0, stream_options={"include_usage": True}
    )

    assert response.headers["content-type"].startswith("text/event-stream")
    *parts, usage = events_of(response)
    choices = [part["choices"][0] for part in parts]
    assert "".join(choice["text"] for choice in choices) == " yes"
    assert [token for choice in choices for token in choice["logprobs"]["tokens"]] == list(" yes")
    assert [offset for choice in choices for offset in choice["logprobs"]["text_offset"]] == [0, 1, 2, 3]
    assert [choice["finish_reason"] for choice in choices] == [*[None] * (len(choices) - 1), "length"]
    assert len(choices) > 2
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 4)


def test_a_stream_of_a_conversation_has_deltas(server: Server) -> None:
    response = server.post(
        "/v1/chat/completions", messages=[{"role": "user", "content": "?"}], stream=True, temperature=0, n=2
    )

    choices = [part["choices"][0] for part in events_of(response)]
    for index in (0, 1):
        deltas = [choice["delta"] for choice in choices if choice["index"] == index]
        assert deltas[0]["role"] == "assistant"
        assert "".join(delta["content"] for delta in deltas) == ANSWER.decode()
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop", "stop"]


def test_an_error_within_a_stream_is_an_event(server: Server) -> None:
    server.generation.scripts = [failing(ModelCallError(SECRET))]

    (event,) = events_of(server.post("/v1/completions", prompt="a", max_tokens=4, stream=True))

    assert event["error"]["code"] == "model-call"
    assert SECRET not in json.dumps(event)


# --- Failures and limits ----------------------------------------------------------------------------------------------


def broken(jobs: list[Job]) -> Generator[CallEvent, None, None]:
    yield Progress()
    raise ValueError(SECRET, jobs)


def test_nothing_of_a_request_is_logged_or_shown_when_the_model_fails(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.scoring.scripts = [failing(ModelCallError(f"cannot compute {SECRET}")), broken]

    for code in ("model-call", "internal"):
        response = server.post("/v1/completions", prompt=SECRET, max_tokens=1)

        assert (response.status_code, response.json()["error"]["code"]) == (500, code)
        assert SECRET not in response.text
    server.refusal(prompt=SECRET, max_tokens=SECRET)
    assert SECRET not in caplog.text


def test_requests_and_health_are_refused_while_the_model_is_not_available(server: Server) -> None:
    assert server.http.get("/health").status_code == 200
    for error, description, code in (
        (None, None, "loading"),
        (WorkerUnavailable("the embedded worker ended 3 times"), server.connection.description, "worker-unavailable"),
        (ModelCallError(SECRET), server.connection.description, "model-call"),
    ):
        server.connection.error, server.connection.description = error, description
        for response in (server.http.get("/health"), server.post("/v1/completions", prompt="a")):
            assert (response.status_code, response.json()["error"]["code"]) == (503, code)
            assert int(response.headers["Retry-After"]) > 0
            assert SECRET not in response.text


def test_a_worker_that_is_gone_is_told_to_the_health_check(server: Server) -> None:
    server.scoring.scripts = [failing(WorkerUnavailable("no worker"))]

    assert server.refusal(prompt="a", max_tokens=1)[0] == 503
    assert [type(error) for error in server.connection.failures] == [WorkerUnavailable]


def test_bodies_are_bounded_and_must_be_json() -> None:
    server = Server(replace(SETTINGS, max_body_bytes=1000))
    post = server.http.post
    json_type = {"Content-Type": "application/json"}

    assert post("/v1/completions", content=b" " * 1001, headers=json_type).status_code == 413
    assert post("/v1/completions", content=iter([b" " * 600] * 2), headers=json_type).status_code == 413  # chunked
    assert post("/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    for body in (b"", b"{", b"[]", b"\xff", b"[" * 900, b'{"prompt": NaN}'):
        response = post("/v1/completions", content=body, headers=json_type)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
    server.dispatcher.close()


def test_a_full_server_refuses_further_requests_and_takes_them_later() -> None:
    server = Server(replace(SETTINGS, max_requests=1))
    gate = threading.Event()
    server.scoring.scripts = [until(gate)]
    first: list[Any] = []
    thread = threading.Thread(target=lambda: first.append(server.post("/v1/completions", prompt="a", max_tokens=1)))
    thread.start()
    while not server.scoring.calls:
        thread.join(0.001)

    refused = server.post("/v1/completions", prompt="b", max_tokens=1)
    gate.set()
    thread.join()

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "full")
    assert int(refused.headers["Retry-After"]) > 0
    assert first[0].status_code == 200
    assert server.post("/v1/completions", prompt="b", max_tokens=1).status_code == 200
    server.dispatcher.close()


def test_an_answer_that_takes_too_long_ends_with_its_work() -> None:
    server = Server(replace(SETTINGS, request_s=0.05))
    server.scoring.scripts = [until(threading.Event())]

    status, _ = server.refusal(prompt="a", max_tokens=1)

    assert status == 504
    assert server.scoring.closed_early.wait(10)
    server.dispatcher.close()


def test_a_client_that_leaves_has_its_work_cancelled(server: Server) -> None:
    server.scoring.scripts = [until(threading.Event())]
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
    }

    async def leave() -> None:
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        messages.put_nowait({"type": "http.request", "body": body, "more_body": False})
        call = asyncio.ensure_future(server.http.app(scope, messages.get, _ignore))
        while not server.scoring.calls:
            await asyncio.sleep(0.001)
        messages.put_nowait({"type": "http.disconnect"})
        await call

    asyncio.run(leave())
    assert server.scoring.closed_early.wait(10)


async def _ignore(message: Any) -> None:
    del message


# --- Access -----------------------------------------------------------------------------------------------------------


def test_a_key_is_needed_before_anything_is_read() -> None:
    server = Server(key=KEY)

    for headers in ({}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": f"Basic {KEY}"}, {"Authorization": KEY}):
        response = server.http.post("/v1/completions", content=b"{", headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert server.http.get("/metrics", headers=headers).status_code == 401
    allowed = {"Authorization": f"Bearer {KEY}"}
    assert server.http.post("/v1/completions", json={"prompt": "a"}, headers=allowed).status_code == 200
    assert server.http.get("/health").status_code == 200
    server.dispatcher.close()


def test_without_a_key_only_names_of_loopback_are_answered(server: Server) -> None:
    for host in ("evil.example", "localhost.evil.example", "10.0.0.1:8000", ""):
        assert server.http.get("/v1/models", headers={"Host": host}).status_code == 403
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
        assert server.http.get("/v1/models", headers={"Host": host}).status_code == 200

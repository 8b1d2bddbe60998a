"""Real clients of ``birdie-zmq serve``: the package openai, and lm_eval's local-completions; run by tox -e clients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import ROOT, Programs

pytestmark = pytest.mark.clients
DEMO = ROOT / "birdie_zmq" / "models" / "demo"
KEY = "a key for the tests of clients"[:30].replace(" ", "-")
TEXT = "The cat sat on the"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("serve")
    key_file = folder / "key"
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    programs = Programs(folder)
    command = ["-m", "birdie_zmq", "serve", "--port", "0", "--model_args", "model_tag=demo", "--device", "cpu"]
    program = programs.start(*command, "--api-key-file", str(key_file))
    found = program.wait_for(r"serving demo at (http://\S+)")[1]
    program.wait_for("loaded demo in")
    yield found
    programs.end()


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    openai = pytest.importorskip("openai", reason="the package openai is not installed; tox -e clients installs it")
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=240) as made:
        yield made


def test_openai_completions_and_streams(client: Any) -> None:
    whole = client.completions.create(model="demo", prompt=TEXT, max_tokens=12, temperature=0, logprobs=2)
    parts = list(client.completions.create(model="demo", prompt=TEXT, max_tokens=12, temperature=0, stream=True))

    assert whole.choices[0].text == "".join(part.choices[0].text for part in parts)
    assert len(whole.choices[0].logprobs.tokens) == whole.usage.completion_tokens
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert [model.id for model in client.models.list()] == ["demo"]


def test_openai_chat(client: Any) -> None:
    request = {"model": "demo", "messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**request, logprobs=True, top_logprobs=2)
    parts = list(client.chat.completions.create(**request, stream=True))

    assert whole.choices[0].message.content == "".join(part.choices[0].delta.content for part in parts)
    assert all(len(token.top_logprobs) == 2 for token in whole.choices[0].logprobs.content)


def test_openai_errors(client: Any) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="prompt has the token"):
        client.completions.create(model="demo", prompt=[10**6])
    with pytest.raises(openai.NotFoundError, match="it serves demo"):
        client.completions.create(model="other", prompt=TEXT)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def scores(folder: Path) -> dict[str, list[Any]]:
    """Return the responses of a run by document."""
    (path,) = folder.rglob("samples_demo_choice*.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    return {sample["doc_id"]: sample["filtered_resps"] for sample in samples}


def lm_eval(folder: Path, *options: str) -> dict[str, list[Any]]:
    command = [sys.executable, "-m", "birdie_zmq", "lm_eval", *options, "--include_path", "examples/tasks"]
    command += ["--tasks", "demo_choice", "--limit", "16", "--log_samples", "--output_path", str(folder)]
    environment = {**os.environ, "OPENAI_API_KEY": KEY}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return scores(folder)


@pytest.mark.parametrize("form", ["tokenized_requests=True", "tokenized_requests=False"])
def test_lm_eval_gets_the_scores_of_birdie_zmq(url: str, form: str, tmp_path: Path) -> None:
    arguments = f"model=demo,base_url={url}/completions,num_concurrent=8,tokenizer={DEMO},max_length=512,{form}"
    served = lm_eval(tmp_path / "served", "--model", "local-completions", "--model_args", arguments)
    own = lm_eval(tmp_path / "own", "--model", "birdie_zmq", "--model_args", "model_tag=demo")

    assert served.keys() == own.keys()
    for document, responses in own.items():
        for (expected, greedy), (score, same) in zip(responses, served[document], strict=True):
            assert float(score) == pytest.approx(float(expected), abs=1e-3)
            assert str(same) == str(greedy)
